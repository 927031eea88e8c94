"""Where the merged checkpoint's config.json describes another model than the base's.

Libraries write a configuration anew. Settings move between ``text_config`` and the top. Defaults appear and disappear.
RoPE is said in other words. So only what both say, and say differently, counts. Of that, what a forward pass depends on
is a fault. The rest (token ids, dropout, how a router was trained) is a note.
"""

from __future__ import annotations

import re
from collections.abc import Collection, Mapping
from dataclasses import dataclass

DESCRIPTION = re.compile(
    r"""model_type | hidden_size | hidden_act\w* | \w*intermediate_size | head_dim | vocab_size | tie_word_embeddings
    | num_(hidden_layers|attention_heads|key_value_heads|experts|local_experts|experts_per_tok|shared_experts)
    | n_(layer|head|embd|inner|routed_experts|shared_experts|group) | topk_group | topk_method | norm_topk_prob
    | scoring_func | first_k_dense_replace | decoder_sparse_step | moe_layer_freq | mlp_only_layers | layer_types
    | full_attention_interval | (q|kv)_lora_rank | (qk_nope|qk_rope|qk|v)_head_dim | linear_\w+ | attention_bias
    | mlp_bias | use_qk_norm | (use_)?sliding_window | (rms|layer)_norm_eps(ilon)? | \w*_multiplier
    | \w*logits?_(softcapping|scaling|scale) | routed_scaling_factor | swiglu_limit | rope_theta
    | partial_rotary_factor | rope\.\w+ | rope_interleave""",
    re.VERBOSE,
)
"""Settings that a forward pass depends on."""
HARMLESS = re.compile(
    r"torch_dtype | dtype | \w*transformers_version | architectures | auto_map | use_cache | _\w+ |"
    r" quantization_config | \w*rope_scaling | \w*rope_parameters",
    re.VERBOSE,
)
"""Settings of the file rather than the model, and those that are compared in another way."""
SHOWN = 60


@dataclass(frozen=True, slots=True, kw_only=True)
class Differences:
    """In words: what describes another model, and what else differs."""

    faults: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()


def _said(config: Mapping[str, object]) -> dict[str, list[object]]:
    """Return each setting's values, at the top and in ``text_config``; None says nothing."""
    text = config.get("text_config")
    sections = [section for section in (config, text) if isinstance(section, Mapping)]
    found: dict[str, list[object]] = {}
    for section in sections:
        for name, value in section.items():
            if name in {"rope_scaling", "rope_parameters"} and isinstance(value, Mapping):
                for part, number in value.items():
                    flat = part if part in {"rope_theta", "partial_rotary_factor"} else f"rope.{part}"
                    found.setdefault(flat, []).append(number)
            elif not isinstance(value, Mapping) and value is not None:
                found.setdefault(name, []).append(value)
    # transformers calls a decoder that it took out of a larger model by a name of its own.
    if "model_type" in found:
        found["model_type"] = [str(value).removesuffix("_text") for value in found["model_type"]]
    return found


def differences(base: Mapping[str, object], merged: Mapping[str, object], expected: Collection[str]) -> Differences:
    """Return where two configurations differ; ``expected`` names settings that a right merge changes."""
    ours, theirs = _said(base), _said(merged)
    faults: list[str] = []
    notes: list[str] = []
    if "model_type" in ours and "model_type" not in theirs:
        faults.append(f"model_type is missing, and the base's is {_short(ours['model_type'][0])}")
    for name in sorted(ours.keys() & theirs.keys() - set(expected)):
        if HARMLESS.fullmatch(name) or any(value in ours[name] for value in theirs[name]):
            continue
        told = f"{name} is {_short(theirs[name][0])}, and the base's is {_short(ours[name][0])}"
        (faults if DESCRIPTION.fullmatch(name) else notes).append(told)
    return Differences(faults=tuple(faults), notes=tuple(f"config.json: {told}" for told in notes))


def _short(value: object) -> str:
    text = str(value)
    return text if len(text) <= SHOWN else f"{text[:SHOWN]}…"
