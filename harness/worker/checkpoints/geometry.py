"""The sizes of a tiny model, by preset.

A preset is a statement about shapes, not about one family. What it fixes (hidden size, expert size, expert count, rank)
is the same for all. A family adds its own sizes on top. ``distinct`` makes every size differ from every other, so that
a transposed or mislabelled tensor cannot fit by accident. The square presets exist because published models are square.
``many`` has so many layers and experts that their numbers sort otherwise as text. It lies in one file without an index.

Sizes are multiples of 8, because torch's grouped matmul wants rows whose bytes are a multiple of 16.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

PRESETS = ("distinct", "square-gate-up", "square-down", "narrow", "single", "blocks", "many")


@dataclass(frozen=True, kw_only=True)
class Geometry:
    """Sizes shared by all families.

    Attributes:
        hidden: H, the width of the residual stream.
        moe_intermediate: I, the width of one routed expert; ``gate_up_proj`` has 2I rows.
        dense_intermediate: the width of the MLP of layers without experts.
        num_experts: E, routed experts per layer.
        top_k: experts per token.
        n_group: groups of experts, where the family routes by groups.
        topk_group: groups kept per token.
        heads: query heads of full attention.
        kv_heads: key/value heads of full attention.
        head_dim: width of a head.
        vocab: tokens.
        rank: r of every LoRA.
        layers: decoder layers; None: as few as show all that a family has.
        shards: files that the weights lie in. Four are coprime to the three projections of an expert: with three, every
            gate_proj would lie in one.
    """

    hidden: int = 48
    moe_intermediate: int = 40
    dense_intermediate: int = 72
    num_experts: int = 8
    top_k: int = 2
    n_group: int = 4
    topk_group: int = 2
    heads: int = 4
    kv_heads: int = 2
    head_dim: int = 28
    vocab: int = 104
    rank: int = 3
    layers: int | None = None
    shards: int = 4


_DISTINCT = Geometry()

_PRESETS = {
    "distinct": _DISTINCT,
    "square-gate-up": replace(_DISTINCT, hidden=80, moe_intermediate=40, head_dim=24),
    "square-down": replace(_DISTINCT, hidden=48, moe_intermediate=48),
    "narrow": replace(_DISTINCT, hidden=88, moe_intermediate=24),
    "single": replace(_DISTINCT, num_experts=1, top_k=1, n_group=1, topk_group=1),
    "blocks": replace(
        _DISTINCT, hidden=128, moe_intermediate=192, dense_intermediate=256, heads=4, kv_heads=2, head_dim=16, rank=4
    ),
    "many": replace(_DISTINCT, num_experts=12, top_k=4, layers=12, shards=1),
}


def geometry(preset: str) -> Geometry:
    """Return the sizes of a preset.

    Raises:
        KeyError: there is no such preset; the host checks names before a cell starts.
    """
    return _PRESETS[preset]
