"""Tiny sizes for a configuration's settings, by their names; pure.

Names are those that configurations of transformers use for the same thing. What a setting means is decided by the first
rule that fits it. Sizes are small and differ from one another where they may, so that a transposed or mislabelled
tensor cannot fit by accident. What chooses other than among experts (the blocks that a sparse attention reads) is made
so wide that it leaves nothing out: a choice that rounding can turn over says nothing about a merge.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

HIDDEN, VOCAB, HEADS, HEAD_DIM, EXPERTS, TOP_K, GROUPS, TOP_GROUPS = 48, 104, 4, 32, 8, 2, 4, 2
NOPE, ROPE = 24, 16
WINDOW = 16
"""Shorter than a prompt, so that a sliding window shows."""
EVERY_BLOCK = 64
"""Longer than any sequence that is trained on or said."""
PAD, EOS, BOS, UNUSED = 0, 1, 2, 3
"""Ids of the tokenizer's special tokens. No text has the last, so it may stand for an image."""

DEPTH = ("num_hidden_layers", "n_layers", "num_layers")
"""What configurations call the number of decoder layers."""

RULES: tuple[tuple[str, int | float | bool], ...] = (
    ("hidden_size|d_model|n_embd", HIDDEN),
    ("vocab_size|unpadded_vocab_size|vocab_size_per_layer_input", VOCAB),
    ("moe_intermediate_size|expert_ffn_hidden_size|moe_ffn_hidden_size", 40),
    ("shared_(experts?_)?intermediate_size|moe_shared_expert_intermediate_size|share_expert_dim", 56),
    ("intermediate_size", 72),
    ("ffn_hidden_size|intermediate_size_mlp|dense_intermediate_size", 88),
    ("num_sliding_attention_heads", 2 * HEADS),
    ("(full_)?num_attention_heads|n_heads", HEADS),
    ("swa_num_attention_heads", HEADS),
    ("(swa_|full_)?num_key_value_heads|num_global_key_value_heads|num_attention_groups", 2),
    ("(swa_|global_)?head_dim|kv_channels|index_head_dim", HEAD_DIM),
    ("swa_v_head_dim|v_head_dim", 20),
    ("q_lora_rank", 36),
    ("kv_lora_rank", 28),
    ("o_lora_rank", 12),
    ("o_groups", 2),
    ("qk_nope_head_dim", NOPE),
    ("qk_rope_head_dim|rotary_dim", ROPE),
    ("index_n_heads", HEADS),
    ("index_topk", EVERY_BLOCK),
    ("index_block_size|index_kpool", 8),
    ("num_experts|n_routed_experts|num_local_experts|moe_num_experts", EXPERTS),
    ("zero_expert_num", 4),
    ("num_experts_per_tok(en)?|moe_topk|moe_k|top_k_experts", TOP_K),
    ("(num_|n_)shared_experts|moe_num_shared_experts", 1),
    ("first_k_dense_replace|num_dense_layers|moe_layer_start_index", 1),
    ("layer_group_size|attn_layer_period|global_attn_every_n_layers|full_attention_interval", 2),
    ("sliding_window_pattern|no_rope_layer_interval|n_layers_per_attn_res_block", 2),
    ("attn_layer_offset", 1),
    ("loop_layer_index_start", 2),
    ("loop_layer_index_end", 4),
    ("enable_moe_block", True),
    ("mamba_d_state|ssm_state_size", 16),
    ("mamba_n_heads|mamba_num_heads", 6),
    ("mamba_d_head|mamba_head_dim|linear_head_dim|linear_key_head_dim", 16),
    ("linear_value_head_dim", 24),
    ("linear_num_key_heads|mamba_n_groups|n_groups", 2),
    ("linear_num_value_heads|linear_num_heads", 4),
    ("mamba_dt_rank", 3),
    ("mamba_chunk_size|chunk_size|block_size", 8),
    ("sliding_window(_size)?|attention_chunk_size", WINDOW),
    ("floor_scale|log_scaling_n_floor|rel_extent", WINDOW),
    ("max_position_embeddings|model_max_length|max_seq_len|max_sequence_length", 512),
    ("router_hidden_size|ple_embed_dim", 20),
    ("hidden_size_per_layer_input|hc_lowrank", 12),
    ("gated_norm_rank|loop_gate_rank|d_rel", 6),
    ("ngram_vocab_size_base", 60),
    ("split_ngram_parts|heads_per_ngram|make_ngram_vocab_size_divisible_by", 2),
    ("pad_token_id", PAD),
    ("eos_token_id", EOS),
    ("bos_token_id", BOS),
    (r"\w+_token_(id|index)", UNUSED),
    (r"(\w+_)?aux_loss_coef|router_z_loss_coef|output_router_logits", 0),
    (r"(\w+_)?(dropout|pdrop|dropout_rate|layerdrop|jitter_noise)", 0.0),
    ("logit_scale|output_multiplier", 0.5),
    ("(encoder|decoder)_attention_heads", HEADS),
    ("use_cache", True),
)
"""A regular expression for a setting's whole name → what it becomes.

Logits are scaled by no less than a half, because a small random model's are small as they are.
The load-balancing loss is off: each family has its own formula for it, and none of them is in a merge.
"""

NEEDED: Mapping[str, int] = {
    "n_routed_experts": EXPERTS, "num_experts": EXPERTS, "num_local_experts": EXPERTS, "n_shared_experts": 1,
    "num_experts_per_tok": TOP_K, "head_dim": HEAD_DIM, "moe_intermediate_size": 40, "top_k_experts": TOP_K,
    "pad_token_id": PAD, "eos_token_id": EOS, "bos_token_id": BOS,
    "indexer_n_heads": HEADS, "indexer_kv_heads": 1, "indexer_head_dim": HEAD_DIM, "indexer_budget": EVERY_BLOCK,
    "indexer_compress_ratio": 4,
}  # fmt: skip
"""What a configuration may leave open that a model with experts cannot do without. What else is open stays open."""

ONE_EXPERT = frozenset({"num_experts_per_tok", "moe_topk"})
"""Where a token goes to one expert by default, it stays one."""

_COMPILED = tuple((re.compile(pattern), value) for pattern, value in RULES)
_ROPE = frozenset({"rope_parameters", "rope_scaling", "id2label", "label2id"})
_UNKNOWN_SIZE = re.compile(r"\w+_(size|dim|rank|width|channels)")
SMALL = 64


def tiny(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return what becomes of a configuration's settings, those alone that become something else.

    Args:
        settings: name → value, as the configuration's class has it by default.
    """
    found: dict[str, Any] = {}
    for name, value in settings.items():
        if (made := _tiny(name, value)) is not None and made != value:
            found[name] = made
    if "qk_rope_head_dim" in settings:
        found |= _latent_attention(settings)
    for name, value in settings.items():
        if isinstance(value, dict) and name not in _ROPE:
            found |= _inside(name, value, found, settings)
    _heads_of_parts(found, settings)
    groups = [name for name in ("n_group", "num_expert_group") if (settings.get(name) or 1) > 1]
    if groups:
        found |= {**dict.fromkeys(groups, GROUPS), "topk_group": TOP_GROUPS}
    return found


def _heads_of_parts(found: dict[str, Any], settings: Mapping[str, Any]) -> None:
    """Where the head's size is that of some layers' latent attention, keep it so."""
    rope, head = settings.get("qk_rope_head_dim"), settings.get("head_dim")
    for name, value in settings.items():
        for key, layer in value.items() if isinstance(value, dict) and rope and head else ():
            if isinstance(layer, dict) and layer.get("qk_nope_head_dim", 0) + rope == head:
                found["head_dim"] = found[name][key]["qk_nope_head_dim"] + ROPE


def _inside(
    name: str, inner: Mapping[Any, Any], outer: Mapping[str, Any], settings: Mapping[str, Any]
) -> dict[str, Any]:
    """Return a setting that holds settings: sizes of single layers, or of a part.

    What is otherwise than outside stays so, in proportion: a head twice as wide in some layers is twice as wide.
    """
    made = {key: _in_proportion(it, outer, settings) if isinstance(it, dict) else it for key, it in inner.items()}
    if not any(isinstance(it, dict) for it in inner.values()):
        made |= {key: size for key, it in inner.items() if (size := _tiny(str(key), it)) is not None}
    return {name: made} if made != inner else {}


def _in_proportion(layer: Mapping[str, Any], outer: Mapping[str, Any], settings: Mapping[str, Any]) -> dict[str, Any]:
    made = dict(layer)
    for name, value in layer.items():
        whole = settings.get(name)
        if type(value) is int and type(whole) is int and whole and name in outer:
            made[name] = max(1, outer[name] * value // whole)
    return made


def _tiny(name: str, value: Any) -> Any:
    """Return what a setting becomes; None where no rule fits it."""
    if name in DEPTH or name in {"n_group", "num_expert_group", "topk_group"}:
        return None
    if value is None:
        return NEEDED.get(name)
    if name in ONE_EXPERT and value == 1:
        return None
    for pattern, size in _COMPILED:
        if pattern.fullmatch(name):
            return _like(value, size)
    is_size = type(value) is int and value > SMALL and _UNKNOWN_SIZE.fullmatch(name)
    return SMALL // 4 if is_size else None


def _like(value: Any, size: float) -> Any:
    """Return a size in the form of what it replaces: nothing where there is nothing, a list where there is one."""
    if isinstance(value, list):
        return [size] * len(value) if value and all(type(item) in {int, float} for item in value) else None
    if isinstance(value, bool):
        return bool(size)
    return type(value)(size) if isinstance(value, int | float) else None


def _latent_attention(settings: Mapping[str, Any]) -> dict[str, Any]:
    """Return head sizes of latent attention (DeepSeek-V2, arXiv 2405.04434), by what they are made of by default."""
    found: dict[str, Any] = {}
    rope, nope = settings.get("qk_rope_head_dim"), settings.get("qk_nope_head_dim")
    if rope == 0:
        found["qk_rope_head_dim"] = 0  # no rotary positions at all, and so it stays
    for name in ("head_dim", "qk_head_dim"):
        if name in settings and settings[name] is not None:
            if settings[name] == rope:
                found[name] = ROPE
            elif nope is not None and settings[name] == rope + nope:
                found[name] = ROPE + NOPE
    if settings.get("num_key_value_heads", 0) == settings.get("num_attention_heads"):
        found["num_key_value_heads"] = HEADS
    return found
