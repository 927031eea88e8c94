"""GLM-4 MoE, by its definition: attention with biases and half-rotated heads, sigmoid routing, a shared expert.

The first layers are dense.
"""

from __future__ import annotations

from typing import Any

from harness.definitions.parts import (
    Array,
    by_sigmoid,
    causal_attention,
    frequencies,
    linear,
    rms_norm,
    rotate_halves,
    routed,
    swiglu,
)
from harness.definitions.weights import Weights


def logits(weights: Weights, config: dict[str, Any], tokens: Array) -> Array:
    """Return the logits of one sequence, (tokens, vocabulary) float64."""
    eps = config["rms_norm_eps"]
    x = weights["embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        path = f"layers.{layer}"
        x = x + _attention(rms_norm(x, weights[f"{path}.input_layernorm.weight"], eps), weights, path, config)
        normed = rms_norm(x, weights[f"{path}.post_attention_layernorm.weight"], eps)
        if layer < config["first_k_dense_replace"]:
            x = x + swiglu(normed, *weights.mlp(f"{path}.mlp"))
        else:
            x = x + _experts(normed, weights, path, config)
    return linear(rms_norm(x, weights["norm.weight"], eps), weights["lm_head.weight"])


def _attention(x: Array, weights: Weights, path: str, config: dict[str, Any]) -> Array:
    width = config["head_dim"]
    query, key, value = (
        linear(
            x, weights[f"{path}.self_attn.{name}_proj.weight"], weights[f"{path}.self_attn.{name}_proj.bias"]
        ).reshape(len(x), -1, width)
        for name in "qkv"
    )
    frequency = frequencies(config["rope_theta"], int(width * config["partial_rotary_factor"]))
    mixed = causal_attention(rotate_halves(query, frequency), rotate_halves(key, frequency), value, width**-0.5)
    return linear(mixed.reshape(len(x), -1), weights[f"{path}.self_attn.o_proj.weight"])


def _experts(x: Array, weights: Weights, path: str, config: dict[str, Any]) -> Array:
    chosen, share = by_sigmoid(
        linear(x, weights[f"{path}.mlp.gate.weight"]),
        weights[f"{path}.mlp.gate.e_score_correction_bias"],
        config["num_experts_per_tok"],
        groups=config["n_group"],
        kept=config["topk_group"],
        normalise=config["norm_topk_prob"],
        scale=config["routed_scaling_factor"],
    )
    shared = swiglu(x, *weights.mlp(f"{path}.mlp.shared_experts"))
    return routed(x, chosen, share, weights.experts(f"{path}.mlp.experts")) + shared
