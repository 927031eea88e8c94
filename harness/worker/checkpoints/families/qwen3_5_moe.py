"""Qwen3.5-MoE, the text model: gated-delta linear attention beside gated full attention.

Routing is softmax. There is a gated shared expert. Experts are fused and 3D on disk, under ``model.language_model.``.
A multi-token-prediction module (``mtp.``) lies beside them.

Source of the layout: the published Qwen3.5-35B-A3B repository (model.safetensors.index.json). Its config.json describes
the multimodal model. The default here is the text model's own (``Qwen3_5MoeForCausalLM``, ``qwen3_5_moe_text``). The
variant ``nested-config`` has the multimodal one. The vision tower's tensors are left out, because no text path reads
them.
"""

from __future__ import annotations

from typing import Any

from harness.worker.checkpoints.family import Checkpoint, Routing, VariantNotOfferedError
from harness.worker.checkpoints.geometry import Geometry
from harness.worker.checkpoints.tensors import TensorSpec, embedding, experts, head, linear, mlp, norm, router
from harness.worker.checkpoints.variants import VARIANTS

LAYOUT_OF = "Qwen3.5-35B-A3B, the text model"
SHOWS = (
    "linear and full attention, a gated shared expert, fused 3D experts under `model.language_model.`, a "
    "prediction module (`mtp.`)"
)

LAYER_TYPES = ("linear_attention", "full_attention")
LINEAR_EVERY = 10
"""Every tenth layer is linear attention, however many layers there are. It divides its output by that output's own
size, which is near zero where a query is almost at right angles to its keys: each such layer makes float32's rounding
some three times larger. With six of twelve a log-probability is off by up to 7e-4, with two by up to 1e-4."""
KEY_HEADS = 2
VALUE_HEADS = 4
KEY_HEAD_DIM = 14
VALUE_HEAD_DIM = 16
CONV_KERNEL = 4
BLOCKS = 64
PREFIXES = ("model.language_model.", "model.")
"""Published repositories have the first. transformers 5.6.2 and later write the second. 5.5.0 to 5.23.0 load both."""


def build(g: Geometry, variant: str) -> Checkpoint:
    """Return the checkpoint; see ``harness.worker.checkpoints.family``."""
    if variant not in VARIANTS:
        raise VariantNotOfferedError(f"qwen3_5_moe is not offered as {variant!r}")
    disk = "model." if variant == "text-prefix" else "model.language_model."
    fused = variant != "per-expert"
    tensors = [embedding(g, disk=disk)]
    types = _layer_types(g)
    for layer, layer_type in enumerate(types):
        tensors += _layer(layer, layer_type, g, disk=disk, fused=fused)
    tensors += [
        norm(f"{disk}norm.weight", g.hidden, init="zeros"),
        head(g),
        *_prediction_module(g),
    ]
    text = _text_config(g)
    return Checkpoint(
        config=_nested_config(text) if variant == "nested-config" else text,
        tensors=tuple(tensors),
        routing=Routing(top_k=g.top_k, scores="softmax"),
        layers_with_experts=tuple(range(len(types))),
        num_experts=g.num_experts,
        prefixes=PREFIXES,
        generation_config={
            "bos_token_id": 2,
            "do_sample": True,
            "eos_token_id": [1, 2],
            "pad_token_id": 0,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "5.2.0",
        },
    )


def _layer_types(g: Geometry) -> tuple[str, ...]:
    """Return the kind of each layer: linear attention first, then full attention, and so on by tens."""
    return tuple(LAYER_TYPES[layer % LINEAR_EVERY > 0] for layer in range(g.layers or len(LAYER_TYPES)))


def _text_config(g: Geometry) -> dict[str, Any]:
    linear_sizes = _linear_attention(g)
    return {
        "architectures": ["Qwen3_5MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "attn_output_gate": True,
        "dtype": "float32",
        "eos_token_id": 1,
        "full_attention_interval": len(LAYER_TYPES),
        "head_dim": g.head_dim,
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "initializer_range": 0.02,
        "layer_types": list(_layer_types(g)),
        "linear_conv_kernel_dim": CONV_KERNEL,
        "linear_key_head_dim": linear_sizes["key_dim"],
        "linear_num_key_heads": KEY_HEADS,
        "linear_num_value_heads": VALUE_HEADS,
        "linear_value_head_dim": linear_sizes["value_dim"],
        "max_position_embeddings": 512,
        "mlp_only_layers": [],
        "model_type": "qwen3_5_moe_text",
        "moe_intermediate_size": g.moe_intermediate,
        "mtp_num_hidden_layers": 1,
        "mtp_use_dedicated_embeddings": False,
        "num_attention_heads": g.heads,
        "num_experts": g.num_experts,
        "num_experts_per_tok": g.top_k,
        "num_hidden_layers": len(_layer_types(g)),
        "num_key_value_heads": g.kv_heads,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_parameters": {
            "mrope_interleaved": True,
            "mrope_section": _mrope_section(g.head_dim // 4),
            "partial_rotary_factor": 0.5,
            "rope_theta": 10000000,
            "rope_type": "default",
        },
        "router_aux_loss_coef": 0.001,
        "shared_expert_intermediate_size": _shared_intermediate(g),
        "tie_word_embeddings": False,
        "transformers_version": "5.2.0",
        "use_cache": True,
        "vocab_size": g.vocab,
    }


def _nested_config(text: dict[str, Any]) -> dict[str, Any]:
    inner = {name: value for name, value in text.items() if name not in {"architectures", "transformers_version"}}
    return {
        "architectures": ["Qwen3_5MoeForConditionalGeneration"],
        "dtype": "float32",
        "image_token_id": 100,
        "model_type": "qwen3_5_moe",
        "text_config": inner,
        "tie_word_embeddings": False,
        "transformers_version": "5.2.0",
        "video_token_id": 101,
        "vision_config": {
            "deepstack_visual_indexes": [],
            "depth": 1,
            "hidden_act": "gelu_pytorch_tanh",
            "hidden_size": 32,
            "in_channels": 3,
            "initializer_range": 0.02,
            "intermediate_size": 64,
            "model_type": "qwen3_5_moe",
            "num_heads": 2,
            "num_position_embeddings": 16,
            "out_hidden_size": text["hidden_size"],
            "patch_size": 4,
            "spatial_merge_size": 2,
            "temporal_patch_size": 2,
        },
        "vision_end_token_id": 102,
        "vision_start_token_id": 103,
    }


def _mrope_section(half: int) -> list[int]:
    """Split half the rotary width over time, height and width, as the published [11, 11, 10] splits 32."""
    return [half - 2 * (half // 3), half // 3, half // 3]


def _shared_intermediate(g: Geometry) -> int:
    """The shared expert's width: unlike the routed experts', so that one cannot be taken for the other."""
    return g.moe_intermediate + (BLOCKS if g.hidden % BLOCKS == 0 else 20)


def _linear_attention(g: Geometry) -> dict[str, int]:
    if g.hidden % BLOCKS == 0:
        return {"key_dim": 32, "value_dim": 32}
    return {"key_dim": KEY_HEAD_DIM, "value_dim": VALUE_HEAD_DIM}


def _layer(layer: int, layer_type: str, g: Geometry, *, disk: str, fused: bool) -> list[TensorSpec]:
    path = f"layers.{layer}"
    attention = _linear_layer(path, g, disk) if layer_type == "linear_attention" else _full_layer(path, g, disk)
    return [
        norm(f"{disk}{path}.input_layernorm.weight", g.hidden, init="zeros"),
        *attention,
        *experts(layer, g.num_experts, g.moe_intermediate, g.hidden, fused=fused, disk=disk),
        router(layer, g.num_experts, g.hidden, disk=disk),
        *mlp(f"{path}.mlp.shared_expert", _shared_intermediate(g), g.hidden, "shared_expert", disk=disk),
        linear(f"{path}.mlp", "shared_expert_gate", 1, g.hidden, "other", disk=disk),
        norm(f"{disk}{path}.post_attention_layernorm.weight", g.hidden, init="zeros"),
    ]


def _linear_layer(path: str, g: Geometry, disk: str) -> list[TensorSpec]:
    sizes = _linear_attention(g)
    keys, values = KEY_HEADS * sizes["key_dim"], VALUE_HEADS * sizes["value_dim"]
    module = f"{path}.linear_attn"
    return [
        TensorSpec(key=f"{disk}{module}.A_log", shape=(VALUE_HEADS,), exponent=1),
        TensorSpec(key=f"{disk}{module}.conv1d.weight", shape=(2 * keys + values, 1, CONV_KERNEL)),
        TensorSpec(key=f"{disk}{module}.dt_bias", shape=(VALUE_HEADS,), exponent=1, offset=1.0),
        linear(module, "in_proj_a", VALUE_HEADS, g.hidden, "attention", disk=disk),
        linear(module, "in_proj_b", VALUE_HEADS, g.hidden, "attention", disk=disk),
        linear(module, "in_proj_qkv", 2 * keys + values, g.hidden, "attention", disk=disk),
        linear(module, "in_proj_z", values, g.hidden, "attention", disk=disk),
        norm(f"{disk}{module}.norm.weight", sizes["value_dim"]),
        linear(module, "out_proj", g.hidden, values, "attention", disk=disk),
    ]


def _full_layer(path: str, g: Geometry, disk: str) -> list[TensorSpec]:
    module = f"{path}.self_attn"
    return [
        norm(f"{disk}{module}.k_norm.weight", g.head_dim, init="zeros"),
        linear(module, "k_proj", g.kv_heads * g.head_dim, g.hidden, "attention", disk=disk),
        linear(module, "o_proj", g.hidden, g.heads * g.head_dim, "attention", disk=disk),
        norm(f"{disk}{module}.q_norm.weight", g.head_dim, init="zeros"),
        # Half of q_proj's rows are the output gate (``attn_output_gate``).
        linear(module, "q_proj", 2 * g.heads * g.head_dim, g.hidden, "attention", disk=disk),
        linear(module, "v_proj", g.kv_heads * g.head_dim, g.hidden, "attention", disk=disk),
    ]


def _prediction_module(g: Geometry) -> list[TensorSpec]:
    """The ``mtp.`` tensors: one full-attention layer. Its experts lie apart: published repositories mix both forms."""
    path = "mtp.layers.0"
    return [
        TensorSpec(key="mtp.fc.weight", shape=(g.hidden, 2 * g.hidden), extra=True),
        norm(f"{path}.input_layernorm.weight", g.hidden, init="zeros", extra=True),
        *experts(0, g.num_experts, g.moe_intermediate, g.hidden, fused=False, disk="mtp.", extra=True),
        TensorSpec(
            key=f"{path}.mlp.gate.weight", shape=(g.num_experts, g.hidden), exponent=1, kind="router", extra=True
        ),
        *mlp("layers.0.mlp.shared_expert", _shared_intermediate(g), g.hidden, "shared_expert", disk="mtp.", extra=True),
        TensorSpec(key=f"{path}.mlp.shared_expert_gate.weight", shape=(1, g.hidden), extra=True),
        norm(f"{path}.post_attention_layernorm.weight", g.hidden, init="zeros", extra=True),
        linear("layers.0.self_attn", "k_proj", g.kv_heads * g.head_dim, g.hidden, "attention", disk="mtp.", extra=True),
        linear("layers.0.self_attn", "o_proj", g.hidden, g.heads * g.head_dim, "attention", disk="mtp.", extra=True),
        linear(
            "layers.0.self_attn", "q_proj", 2 * g.heads * g.head_dim, g.hidden, "attention", disk="mtp.", extra=True
        ),
        linear("layers.0.self_attn", "v_proj", g.kv_heads * g.head_dim, g.hidden, "attention", disk="mtp.", extra=True),
        norm("mtp.norm.weight", g.hidden, init="zeros", extra=True),
        norm("mtp.pre_fc_norm_embedding.weight", g.hidden, init="zeros", extra=True),
        norm("mtp.pre_fc_norm_hidden.weight", g.hidden, init="zeros", extra=True),
    ]
