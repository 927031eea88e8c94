"""Qwen3-MoE: grouped-query attention with q/k norms, softmax routing, no shared expert; per-expert 2D keys on disk.

Source of the layout: the published Qwen3-30B-A3B repository (config.json, model.safetensors.index.json).
"""

from __future__ import annotations

from harness.worker.checkpoints.family import Checkpoint, Routing, VariantNotOfferedError
from harness.worker.checkpoints.geometry import Geometry
from harness.worker.checkpoints.tensors import TensorSpec, embedding, experts, head, linear, norm, router

LAYOUT_OF = "Qwen3-30B-A3B"
SHOWS = "softmax routing, q/k norms; per-expert 2D keys"

VARIANTS = ("published", "tied")

LAYERS = 2


def build(g: Geometry, variant: str) -> Checkpoint:
    """Return the checkpoint; see ``harness.worker.checkpoints.family``."""
    if variant not in VARIANTS:
        raise VariantNotOfferedError(f"qwen3_moe is not offered as {variant!r}")
    tied = variant == "tied"
    layers = g.layers or LAYERS
    tensors = [embedding(g, tied=tied)]
    for layer in range(layers):
        tensors += _layer(layer, g)
    tensors += [norm("model.norm.weight", g.hidden), *([] if tied else [head(g)])]
    config = {
        "architectures": ["Qwen3MoeForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "decoder_sparse_step": 1,
        "eos_token_id": 1,
        "head_dim": g.head_dim,
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "initializer_range": 0.02,
        "intermediate_size": g.dense_intermediate,
        "max_position_embeddings": 512,
        "max_window_layers": layers,
        "mlp_only_layers": [],
        "model_type": "qwen3_moe",
        "moe_intermediate_size": g.moe_intermediate,
        "norm_topk_prob": True,
        "num_attention_heads": g.heads,
        "num_experts": g.num_experts,
        "num_experts_per_tok": g.top_k,
        "num_hidden_layers": layers,
        "num_key_value_heads": g.kv_heads,
        "output_router_logits": False,
        "rms_norm_eps": 1e-06,
        "rope_scaling": None,
        "rope_theta": 1000000.0,
        "router_aux_loss_coef": 0.001,
        "sliding_window": None,
        "tie_word_embeddings": tied,
        "torch_dtype": "float32",
        "transformers_version": "4.51.0",
        "use_cache": True,
        "use_sliding_window": False,
        "vocab_size": g.vocab,
    }
    return Checkpoint(
        config=config,
        tensors=tuple(tensors),
        routing=Routing(top_k=g.top_k, scores="softmax"),
        layers_with_experts=tuple(range(layers)),
        num_experts=g.num_experts,
        generation_config={
            "bos_token_id": 2,
            "do_sample": True,
            "eos_token_id": [1, 2],
            "pad_token_id": 0,
            "temperature": 0.6,
            "top_k": 20,
            "top_p": 0.95,
            "transformers_version": "4.51.0",
        },
    )


def _layer(layer: int, g: Geometry) -> list[TensorSpec]:
    attention = f"layers.{layer}.self_attn"
    return [
        norm(f"model.layers.{layer}.input_layernorm.weight", g.hidden),
        *experts(layer, g.num_experts, g.moe_intermediate, g.hidden, fused=False),
        router(layer, g.num_experts, g.hidden),
        norm(f"model.layers.{layer}.post_attention_layernorm.weight", g.hidden),
        norm(f"model.{attention}.k_norm.weight", g.head_dim),
        linear(attention, "k_proj", g.kv_heads * g.head_dim, g.hidden, "attention"),
        linear(attention, "o_proj", g.hidden, g.heads * g.head_dim, "attention"),
        norm(f"model.{attention}.q_norm.weight", g.head_dim),
        linear(attention, "q_proj", g.heads * g.head_dim, g.hidden, "attention"),
        linear(attention, "v_proj", g.kv_heads * g.head_dim, g.hidden, "attention"),
    ]
