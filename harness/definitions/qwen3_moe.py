"""Qwen3-MoE, by its definition: grouped-query attention with normed queries and keys, softmax routing."""

from __future__ import annotations

from typing import Any

from harness.definitions.parts import (
    Array,
    by_softmax,
    causal_attention,
    frequencies,
    linear,
    rms_norm,
    rotate_halves,
    routed,
)
from harness.definitions.weights import Weights


def logits(weights: Weights, config: dict[str, Any], tokens: Array) -> Array:
    """Return the logits of one sequence, (tokens, vocabulary) float64."""
    eps = config["rms_norm_eps"]
    x = weights["embed_tokens.weight"][tokens]
    for layer in range(config["num_hidden_layers"]):
        path = f"layers.{layer}"
        x = x + _attention(rms_norm(x, weights[f"{path}.input_layernorm.weight"], eps), weights, path, config)
        x = x + _experts(rms_norm(x, weights[f"{path}.post_attention_layernorm.weight"], eps), weights, path, config)
    return linear(rms_norm(x, weights["norm.weight"], eps), weights["lm_head.weight"])


def _attention(x: Array, weights: Weights, path: str, config: dict[str, Any]) -> Array:
    width, eps = config["head_dim"], config["rms_norm_eps"]
    query, key, value = (
        linear(x, weights[f"{path}.self_attn.{name}_proj.weight"]).reshape(len(x), -1, width) for name in "qkv"
    )
    frequency = frequencies(config["rope_theta"], width)
    query = rotate_halves(rms_norm(query, weights[f"{path}.self_attn.q_norm.weight"], eps), frequency)
    key = rotate_halves(rms_norm(key, weights[f"{path}.self_attn.k_norm.weight"], eps), frequency)
    mixed = causal_attention(query, key, value, width**-0.5)
    return linear(mixed.reshape(len(x), -1), weights[f"{path}.self_attn.o_proj.weight"])


def _experts(x: Array, weights: Weights, path: str, config: dict[str, Any]) -> Array:
    chosen, share = by_softmax(
        linear(x, weights[f"{path}.mlp.gate.weight"]),
        config["num_experts_per_tok"],
        normalise=config["norm_topk_prob"],
    )
    return routed(x, chosen, share, weights.experts(f"{path}.mlp.experts"))
