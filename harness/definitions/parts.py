"""The parts that architectures share, each by its definition. Everything is float64, for one sequence: (tokens, …)."""

from __future__ import annotations

from typing import Any

import numpy as np

Array = Any
"""A numpy array of float64, or of int64 where it holds indices."""


def sigmoid(x: Array) -> Array:
    """Return 1 / (1 + e^-x)."""
    return 1 / (1 + np.exp(-x))


def silu(x: Array) -> Array:
    """Return x * sigmoid(x)."""
    return x * sigmoid(x)


def softplus(x: Array) -> Array:
    """Return ln(1 + e^x)."""
    return np.logaddexp(0, x)


def softmax(x: Array) -> Array:
    """Return the softmax over the last axis."""
    raised = np.exp(x - x.max(axis=-1, keepdims=True))
    return raised / raised.sum(axis=-1, keepdims=True)


def rms_norm(x: Array, weight: Array, eps: float) -> Array:
    """Divide by the root of the mean square of the last axis (plus eps), and scale."""
    return x / np.sqrt((x * x).mean(axis=-1, keepdims=True) + eps) * weight


def linear(x: Array, weight: Array, bias: Array | None = None) -> Array:
    """Return x W^T + b; ``weight`` is (out, in)."""
    return x @ weight.T if bias is None else x @ weight.T + bias


def swiglu(x: Array, gate: Array, up: Array, down: Array) -> Array:
    """Return the MLP silu(x gate^T) * (x up^T) times down^T; gate and up are (inner, hidden), down (hidden, inner)."""
    return linear(silu(linear(x, gate)) * linear(x, up), down)


# Positions


def frequencies(theta: float, width: int) -> Array:
    """Return the rotary frequencies theta^(-2i / width), (width / 2,)."""
    return theta ** -(np.arange(0, width, 2) / width)


def rotate_halves(x: Array, frequency: Array) -> Array:
    """Rotate the first ``2n`` of the last axis by position times frequency: i and i + n are a plane. The rest stays.

    Args:
        x: (tokens, heads, width).
        frequency: (n,).
    """
    n = len(frequency)
    return np.concatenate([*_rotated(x[..., :n], x[..., n : 2 * n], frequency), x[..., 2 * n :]], axis=-1)


def rotate_neighbours(x: Array, frequency: Array) -> Array:
    """Rotate all of the last axis by position times frequency: 2i and 2i + 1 are a plane."""
    rotated = np.empty_like(x)
    rotated[..., 0::2], rotated[..., 1::2] = _rotated(x[..., 0::2], x[..., 1::2], frequency)
    return rotated


def _rotated(a: Array, b: Array, frequency: Array) -> tuple[Array, Array]:
    angle = np.arange(a.shape[0])[:, None, None] * frequency
    return a * np.cos(angle) - b * np.sin(angle), b * np.cos(angle) + a * np.sin(angle)


# Attention


def causal_attention(query: Array, key: Array, value: Array, scale: float) -> Array:
    """Return softmax(scale * q k^T) v, each token looking at itself and those before it.

    Args:
        query: (tokens, heads, width).
        key: (tokens, key heads, width); query head h looks at key head h // (heads / key heads).
        value: (tokens, key heads, value width).
        scale: what scores are multiplied with.

    Returns:
        (tokens, heads, value width).
    """
    tokens, heads, _ = query.shape
    shared = heads // key.shape[1]
    future = np.triu(np.ones((tokens, tokens), dtype=bool), k=1)
    out = np.empty((tokens, heads, value.shape[-1]))
    for head in range(heads):
        scores = scale * query[:, head] @ key[:, head // shared].T
        out[:, head] = softmax(np.where(future, -np.inf, scores)) @ value[:, head // shared]
    return out


# Experts


def best(scores: Array, count: int) -> Array:
    """Return the indices of the ``count`` largest of the last axis, (…, count), largest first."""
    return np.argsort(-scores, axis=-1, kind="stable")[..., :count]


def routed(x: Array, chosen: Array, weight: Array, experts: tuple[Array, Array, Array]) -> Array:
    """Return for each token the weighted sum of what its experts make of it.

    Args:
        x: (tokens, hidden).
        chosen: (tokens, k) experts.
        weight: (tokens, k).
        experts: gate and up (experts, inner, hidden) and down (experts, hidden, inner).
    """
    gate, up, down = experts
    out = np.zeros_like(x)
    for token in range(len(x)):
        for e, share in zip(chosen[token], weight[token], strict=True):
            out[token] += share * swiglu(x[token], gate[e], up[e], down[e])
    return out


def by_softmax(logits: Array, k: int, *, normalise: bool) -> tuple[Array, Array]:
    """Choose the k likeliest experts and weigh them by their probability, which sums to 1 where it is normalised."""
    probabilities = softmax(logits)
    chosen = best(probabilities, k)
    weight = np.take_along_axis(probabilities, chosen, axis=-1)
    return chosen, weight / weight.sum(axis=-1, keepdims=True) if normalise else weight


def by_sigmoid(
    logits: Array, bias: Array, k: int, *, groups: int, kept: int, normalise: bool, scale: float
) -> tuple[Array, Array]:
    """Choose experts by sigmoid plus bias among the best groups; weigh them by the sigmoid without it.

    A group's score is the sum of its two best experts'. Weights sum to ``scale`` where they are normalised.

    Args:
        logits: (tokens, experts).
        bias: (experts,), for the choice alone.
        k: experts for a token.
        groups: how many groups the experts are in, side by side.
        kept: how many of them a token may choose from.
        normalise: whether the weights of a token are divided by their sum.
        scale: what weights are multiplied with.
    """
    scores = sigmoid(logits)
    ranked = (scores + bias).reshape(len(logits), groups, -1)
    two_best = np.sort(ranked, axis=-1)[..., -2:].sum(axis=-1)
    out_of_play = np.ones(two_best.shape, dtype=bool)
    np.put_along_axis(out_of_play, best(two_best, kept), values=False, axis=-1)
    ranked = np.where(out_of_play[..., None], -np.inf, ranked).reshape(logits.shape)
    chosen = best(ranked, k)
    weight = np.take_along_axis(scores, chosen, axis=-1)
    if normalise:
        weight = weight / weight.sum(axis=-1, keepdims=True)
    return chosen, scale * weight
