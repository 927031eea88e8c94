"""Qwen3.5-MoE's text model, by its definition: gated delta rule and gated full attention in turns, softmax routing.

The shared expert has a gate of its own. Norms scale by 1 + weight, except the one inside the linear attention. The
delta rule is that of arXiv 2412.06464: for each head a state S (key width, value width) decays, forgets what the key
reads from it, and learns the value in its place.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.definitions.parts import (
    Array,
    by_softmax,
    causal_attention,
    frequencies,
    linear,
    rms_norm,
    rotate_halves,
    routed,
    sigmoid,
    silu,
    softplus,
    swiglu,
)
from harness.definitions.weights import Weights

UNIT_EPS = 1e-6
"""Under the root where queries and keys of the delta rule are brought to length 1."""


def logits(weights: Weights, config: dict[str, Any], tokens: Array) -> Array:
    """Return the logits of one sequence, (tokens, vocabulary) float64."""
    eps = config["rms_norm_eps"]
    x = weights["embed_tokens.weight"][tokens]
    for layer, kind in enumerate(config["layer_types"]):
        path = f"layers.{layer}"
        mix = {"linear_attention": _delta_rule, "full_attention": _attention}[kind]
        x = x + mix(rms_norm(x, 1 + weights[f"{path}.input_layernorm.weight"], eps), weights, path, config)
        x = x + _experts(
            rms_norm(x, 1 + weights[f"{path}.post_attention_layernorm.weight"], eps), weights, path, config
        )
    return linear(rms_norm(x, 1 + weights["norm.weight"], eps), weights["lm_head.weight"])


def _attention(x: Array, weights: Weights, path: str, config: dict[str, Any]) -> Array:
    width, eps, rope = config["head_dim"], config["rms_norm_eps"], config["rope_parameters"]
    at = f"{path}.self_attn"
    both = linear(x, weights[f"{at}.q_proj.weight"]).reshape(len(x), -1, 2 * width)
    query, gate = both[..., :width], both[..., width:]
    key, value = (linear(x, weights[f"{at}.{name}_proj.weight"]).reshape(len(x), -1, width) for name in "kv")
    # Text has one position for time, height and width, so that the sections of the rotary axes are all alike.
    frequency = frequencies(rope["rope_theta"], int(width * rope["partial_rotary_factor"]))
    query = rotate_halves(rms_norm(query, 1 + weights[f"{at}.q_norm.weight"], eps), frequency)
    key = rotate_halves(rms_norm(key, 1 + weights[f"{at}.k_norm.weight"], eps), frequency)
    mixed = causal_attention(query, key, value, width**-0.5) * sigmoid(gate)
    return linear(mixed.reshape(len(x), -1), weights[f"{at}.o_proj.weight"])


def _delta_rule(x: Array, weights: Weights, path: str, config: dict[str, Any]) -> Array:
    key_width, value_width = config["linear_key_head_dim"], config["linear_value_head_dim"]
    key_heads, heads = config["linear_num_key_heads"], config["linear_num_value_heads"]
    at, keys = f"{path}.linear_attn", key_heads * key_width
    mixed = silu(causal_convolution(linear(x, weights[f"{at}.in_proj_qkv.weight"]), weights[f"{at}.conv1d.weight"]))
    query, key = (part.reshape(len(x), key_heads, key_width) for part in (mixed[:, :keys], mixed[:, keys : 2 * keys]))
    query, key = (np.repeat(part, heads // key_heads, axis=1) for part in (query, key))
    value = mixed[:, 2 * keys :].reshape(len(x), heads, value_width)
    strength = sigmoid(linear(x, weights[f"{at}.in_proj_b.weight"]))
    step = softplus(linear(x, weights[f"{at}.in_proj_a.weight"]) + weights[f"{at}.dt_bias"])
    decay = np.exp(-np.exp(weights[f"{at}.A_log"]) * step)
    read = delta_rule(_unit(query) * key_width**-0.5, _unit(key), value, strength, decay)
    gate = silu(linear(x, weights[f"{at}.in_proj_z.weight"]).reshape(read.shape))
    normed = rms_norm(read, weights[f"{at}.norm.weight"], config["rms_norm_eps"]) * gate
    return linear(normed.reshape(len(x), -1), weights[f"{at}.out_proj.weight"])


def causal_convolution(x: Array, weight: Array) -> Array:
    """Return for each channel the sum over the last tokens, ``weight[channel, 0, -1]`` being the token's own.

    Args:
        x: (tokens, channels).
        weight: (channels, 1, kernel).
    """
    kernel = weight.shape[-1]
    before = np.concatenate([np.zeros((kernel - 1, x.shape[1])), x])
    return sum(before[i : i + len(x)] * weight[:, 0, i] for i in range(kernel))


def delta_rule(query: Array, key: Array, value: Array, strength: Array, decay: Array) -> Array:
    """Return what the query reads from the state after each token, (tokens, heads, value width).

    Args:
        query: (tokens, heads, key width).
        key: (tokens, heads, key width), of length 1.
        value: (tokens, heads, value width).
        strength: (tokens, heads), how much of what the key reads is replaced.
        decay: (tokens, heads), what is left of the state.
    """
    out = np.empty_like(value)
    for head in range(query.shape[1]):
        state = np.zeros((key.shape[-1], value.shape[-1]))
        for token in range(len(query)):
            state = decay[token, head] * state
            there = key[token, head] @ state
            state = state + np.outer(key[token, head], strength[token, head] * (value[token, head] - there))
            out[token, head] = query[token, head] @ state
    return out


def _unit(x: Array) -> Array:
    return x / np.sqrt((x * x).sum(axis=-1, keepdims=True) + UNIT_EPS)


def _experts(x: Array, weights: Weights, path: str, config: dict[str, Any]) -> Array:
    # The config has no norm_topk_prob: Qwen3.5 always normalises.
    chosen, share = by_softmax(
        linear(x, weights[f"{path}.mlp.gate.weight"]), config["num_experts_per_tok"], normalise=True
    )
    gate = sigmoid(linear(x, weights[f"{path}.mlp.shared_expert_gate.weight"]))
    shared = gate * swiglu(x, *weights.mlp(f"{path}.mlp.shared_expert"))
    return routed(x, chosen, share, weights.experts(f"{path}.mlp.experts")) + shared
