"""GLM-4 MoE: a leading dense layer, shared experts and attention biases.

Routing is sigmoid, with a correction bias. A multi-token-prediction layer lies on disk, which the model does not load.
Each expert has keys of its own, for 2D tensors.

Source of the layout: the published GLM-4.5-Air repository (config.json, model.safetensors.index.json). Its prediction
layer has the index ``num_hidden_layers``.
"""

from __future__ import annotations

from harness.worker.checkpoints.family import Checkpoint, Routing, VariantNotOfferedError
from harness.worker.checkpoints.geometry import Geometry
from harness.worker.checkpoints.tensors import (
    TensorSpec,
    bias,
    embedding,
    experts,
    head,
    linear,
    mlp,
    norm,
    prediction_layer,
    router,
)

LAYOUT_OF = "GLM-4.5-Air"
SHOWS = (
    "a leading dense layer, a shared expert, sigmoid routing with a correction bias, attention biases, a "
    "prediction layer; per-expert 2D keys"
)

LAYERS = 3
DENSE_LAYERS = 1


def build(g: Geometry, variant: str) -> Checkpoint:
    """Return the checkpoint; see ``harness.worker.checkpoints.family``."""
    if variant != "published":
        raise VariantNotOfferedError(f"glm4_moe is published in one layout only, not {variant!r}")
    layers = g.layers or LAYERS
    tensors = [embedding(g)]
    for layer in range(layers):
        tensors += _layer(layer, g, extra=False)
    tensors += [
        norm("model.norm.weight", g.hidden),
        head(g),
        *prediction_layer(layers, g, _layer(layers, g, extra=True)),
    ]
    config = {
        "architectures": ["Glm4MoeForCausalLM"],
        "attention_bias": True,
        "attention_dropout": 0.0,
        "eos_token_id": [1, 2],
        "first_k_dense_replace": DENSE_LAYERS,
        "head_dim": g.head_dim,
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "initializer_range": 0.02,
        "intermediate_size": g.dense_intermediate,
        "max_position_embeddings": 512,
        "model_type": "glm4_moe",
        "moe_intermediate_size": g.moe_intermediate,
        "n_group": 1,
        "n_routed_experts": g.num_experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": g.heads,
        "num_experts_per_tok": g.top_k,
        "num_hidden_layers": layers,
        "num_key_value_heads": g.kv_heads,
        "num_nextn_predict_layers": 1,
        "pad_token_id": 0,
        "partial_rotary_factor": 0.5,
        "rms_norm_eps": 1e-05,
        "rope_scaling": None,
        "rope_theta": 1000000,
        "routed_scaling_factor": 1.0,
        "tie_word_embeddings": False,
        "topk_group": 1,
        "torch_dtype": "float32",
        "transformers_version": "4.54.0",
        "use_cache": True,
        "use_qk_norm": False,
        "vocab_size": g.vocab,
    }
    return Checkpoint(
        config=config,
        tensors=tuple(tensors),
        routing=Routing(top_k=g.top_k, scores="sigmoid"),
        layers_with_experts=tuple(range(DENSE_LAYERS, layers)),
        num_experts=g.num_experts,
        generation_config={
            "_from_model_config": True,
            "eos_token_id": [1, 2],
            "pad_token_id": 0,
            "transformers_version": "4.54.0",
        },
    )


def _layer(layer: int, g: Geometry, *, extra: bool) -> list[TensorSpec]:
    attention = f"layers.{layer}.self_attn"
    tensors = [norm(f"model.layers.{layer}.input_layernorm.weight", g.hidden, extra=extra)]
    if layer < DENSE_LAYERS:
        tensors += mlp(f"layers.{layer}.mlp", g.dense_intermediate, g.hidden, "dense")
    else:
        tensors += [
            *experts(layer, g.num_experts, g.moe_intermediate, g.hidden, fused=False, extra=extra),
            TensorSpec(
                key=f"model.layers.{layer}.mlp.gate.e_score_correction_bias",
                shape=(g.num_experts,),
                exponent=5,
                extra=extra,
                always_float32=True,
            ),
            router(layer, g.num_experts, g.hidden, extra=extra),
            *mlp(f"layers.{layer}.mlp.shared_experts", g.moe_intermediate, g.hidden, "shared_expert", extra=extra),
        ]
    tensors.append(norm(f"model.layers.{layer}.post_attention_layernorm.weight", g.hidden, extra=extra))
    sizes = {"k_proj": g.kv_heads, "q_proj": g.heads, "v_proj": g.kv_heads}
    for name, heads in sizes.items():
        tensors += [
            bias(attention, name, heads * g.head_dim, "attention", extra=extra),
            linear(attention, name, heads * g.head_dim, g.hidden, "attention", extra=extra),
        ]
    tensors.append(linear(attention, "o_proj", g.hidden, g.heads * g.head_dim, "attention", extra=extra))
    return tensors
