"""DeepSeek-V3: multi-head latent attention, a leading dense layer and a shared expert.

Routing is group-limited and sigmoid, with a correction bias. A multi-token-prediction layer lies on disk, which the
model does not load. Each expert has keys of its own, for 2D tensors.

Source of the layout: the published DeepSeek-V3 repository (config.json, model.safetensors.index.json). Two things of
that config.json are left out: ``quantization_config`` (this checkpoint is not FP8) and ``auto_map`` (no remote code is
run).
"""

from __future__ import annotations

from harness.worker.checkpoints.family import Checkpoint, Routing, VariantNotOfferedError
from harness.worker.checkpoints.geometry import Geometry
from harness.worker.checkpoints.tensors import (
    TensorSpec,
    embedding,
    experts,
    head,
    linear,
    mlp,
    norm,
    prediction_layer,
    router,
)

LAYOUT_OF = "DeepSeek-V3"
SHOWS = (
    "latent attention, a leading dense layer, a shared expert, group-limited sigmoid routing, a "
    "prediction layer; per-expert 2D keys"
)

LAYERS = 3
DENSE_LAYERS = 1
Q_LORA_RANK = 36
KV_LORA_RANK = 18
ROPE_DIM = 8
NOPE_DIM = 20
V_DIM = 14
BLOCKS = 64


def build(g: Geometry, variant: str) -> Checkpoint:
    """Return the checkpoint; see ``harness.worker.checkpoints.family``."""
    if variant != "published":
        raise VariantNotOfferedError(f"deepseek_v3 is published in one layout only, not {variant!r}")
    layers = g.layers or LAYERS
    tensors = [embedding(g)]
    for layer in range(layers):
        tensors += _layer(layer, g, extra=False)
    tensors += [
        norm("model.norm.weight", g.hidden),
        head(g),
        *prediction_layer(layers, g, _layer(layers, g, extra=True)),
    ]
    latent = _latent(g)
    config = {
        "architectures": ["DeepseekV3ForCausalLM"],
        "attention_bias": False,
        "attention_dropout": 0.0,
        "bos_token_id": 2,
        "eos_token_id": 1,
        "ep_size": 1,
        "first_k_dense_replace": DENSE_LAYERS,
        "hidden_act": "silu",
        "hidden_size": g.hidden,
        "initializer_range": 0.02,
        "intermediate_size": g.dense_intermediate,
        "kv_lora_rank": latent["kv_rank"],
        "max_position_embeddings": 163840,
        "model_type": "deepseek_v3",
        "moe_intermediate_size": g.moe_intermediate,
        "moe_layer_freq": 1,
        "n_group": g.n_group,
        "n_routed_experts": g.num_experts,
        "n_shared_experts": 1,
        "norm_topk_prob": True,
        "num_attention_heads": g.heads,
        "num_experts_per_tok": g.top_k,
        "num_hidden_layers": layers,
        "num_key_value_heads": g.heads,
        "num_nextn_predict_layers": 1,
        "q_lora_rank": latent["q_rank"],
        "qk_nope_head_dim": latent["nope"],
        "qk_rope_head_dim": latent["rope"],
        "rms_norm_eps": 1e-06,
        "rope_scaling": {
            "beta_fast": 32,
            "beta_slow": 1,
            "factor": 40,
            "mscale": 1.0,
            "mscale_all_dim": 1.0,
            "original_max_position_embeddings": 4096,
            "type": "yarn",
        },
        "rope_theta": 10000,
        "routed_scaling_factor": 2.5,
        "scoring_func": "sigmoid",
        "tie_word_embeddings": False,
        "topk_group": g.topk_group,
        "topk_method": "noaux_tc",
        "torch_dtype": "float32",
        "transformers_version": "4.33.1",
        "use_cache": True,
        "v_head_dim": latent["v"],
        "vocab_size": g.vocab,
    }
    return Checkpoint(
        config=config,
        tensors=tuple(tensors),
        routing=Routing(top_k=g.top_k, scores="sigmoid", n_group=g.n_group, topk_group=g.topk_group),
        layers_with_experts=tuple(range(DENSE_LAYERS, layers)),
        num_experts=g.num_experts,
        generation_config={
            "_from_model_config": True,
            "bos_token_id": 2,
            "eos_token_id": 1,
            "do_sample": True,
            "temperature": 0.6,
            "top_p": 0.95,
            "transformers_version": "4.33.1",
        },
    )


def _latent(g: Geometry) -> dict[str, int]:
    """Sizes of the latent attention; multiples of 64 and 32 where every Linear must be quantisable."""
    if g.hidden % BLOCKS == 0:
        return {"q_rank": 64, "kv_rank": 64, "rope": 32, "nope": 16, "v": 16}
    return {"q_rank": Q_LORA_RANK, "kv_rank": KV_LORA_RANK, "rope": ROPE_DIM, "nope": NOPE_DIM, "v": V_DIM}


def _layer(layer: int, g: Geometry, *, extra: bool) -> list[TensorSpec]:
    attention = f"layers.{layer}.self_attn"
    latent = _latent(g)
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
    shapes = {
        "kv_a_proj_with_mqa": (latent["kv_rank"] + latent["rope"], g.hidden),
        "kv_b_proj": (g.heads * (latent["nope"] + latent["v"]), latent["kv_rank"]),
        "o_proj": (g.hidden, g.heads * latent["v"]),
        "q_a_proj": (latent["q_rank"], g.hidden),
        "q_b_proj": (g.heads * (latent["nope"] + latent["rope"]), latent["q_rank"]),
    }
    return [
        *tensors,
        norm(f"model.layers.{layer}.post_attention_layernorm.weight", g.hidden, extra=extra),
        norm(f"model.{attention}.kv_a_layernorm.weight", latent["kv_rank"], extra=extra),
        norm(f"model.{attention}.q_a_layernorm.weight", latent["q_rank"], extra=extra),
        *(linear(attention, name, *shape, "attention", extra=extra) for name, shape in shapes.items()),
    ]
