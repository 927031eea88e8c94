"""DeepSeek-V3, by its definition: latent attention, group-limited sigmoid routing, a shared expert.

The first layers are dense. Positions are YaRN's (arXiv 2309.00071, as DeepSeek-V3's own ``modeling_deepseek.py`` has
it): frequencies whose wavelength is long against the original context are divided by ``factor``, those whose wavelength
is short stay, and a ramp lies between. Scores grow by the square of ``0.1 mscale_all_dim ln(factor) + 1``.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from harness.definitions.parts import (
    Array,
    by_sigmoid,
    causal_attention,
    frequencies,
    linear,
    rms_norm,
    rotate_neighbours,
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
    nope, rope, eps = config["qk_nope_head_dim"], config["qk_rope_head_dim"], config["rms_norm_eps"]
    rank, scaling = config["kv_lora_rank"], config["rope_scaling"]
    at = f"{path}.self_attn"
    latent = rms_norm(linear(x, weights[f"{at}.q_a_proj.weight"]), weights[f"{at}.q_a_layernorm.weight"], eps)
    query = linear(latent, weights[f"{at}.q_b_proj.weight"]).reshape(len(x), -1, nope + rope)

    compressed = linear(x, weights[f"{at}.kv_a_proj_with_mqa.weight"])
    latent = rms_norm(compressed[:, :rank], weights[f"{at}.kv_a_layernorm.weight"], eps)
    expanded = linear(latent, weights[f"{at}.kv_b_proj.weight"])
    expanded = expanded.reshape(len(x), config["num_attention_heads"], nope + config["v_head_dim"])
    key, value = expanded[..., :nope], expanded[..., nope:]

    # The heads share one key for positions.
    frequency = yarn_frequencies(config["rope_theta"], rope, scaling)
    position = rotate_neighbours(compressed[:, None, rank:], frequency)
    key = np.concatenate([key, np.broadcast_to(position, (*key.shape[:2], rope))], axis=-1)
    query = np.concatenate([query[..., :nope], rotate_neighbours(query[..., nope:], frequency)], axis=-1)

    longer = 0.1 * scaling["mscale_all_dim"] * math.log(scaling["factor"]) + 1
    mixed = causal_attention(query, key, value, longer**2 * (nope + rope) ** -0.5)
    return linear(mixed.reshape(len(x), -1), weights[f"{at}.o_proj.weight"])


def yarn_frequencies(theta: float, width: int, scaling: dict[str, Any]) -> Array:
    """Return the rotary frequencies that YaRN makes of theta^(-2i / width), (width / 2,)."""

    def dimension(turns: float) -> float:
        """The index at which a wave turns so many times over the original context."""
        context = scaling["original_max_position_embeddings"]
        return width * math.log(context / (turns * 2 * math.pi)) / (2 * math.log(theta))

    low = max(math.floor(dimension(scaling["beta_fast"])), 0)
    high = min(math.ceil(dimension(scaling["beta_slow"])), width - 1)
    ramp = np.clip((np.arange(width // 2) - low) / max(high - low, 0.001), 0, 1)
    plain = frequencies(theta, width)
    return plain / scaling["factor"] * ramp + plain * (1 - ramp)


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
