"""How near quantised weights must lie to the original's, by the definition of their code.

A weight must lie as near to the original as the nearest code does, but for what rounding the block's scale costs. That
goes up as often as down, so that all weights of a tensor together are as large as their nearest codes, the nearer the
more blocks there are.
"""

from __future__ import annotations

import numpy as np

from harness.definitions.parts import Array

BLOCK = 64
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""QLoRA (arXiv 2305.14314), appendix E."""
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0.0, 0.0625, 2, 3, 4, 6, 8, 12))
"""``bitsandbytes``' 4-bit float: two bits of exponent and one of mantissa, the smallest subnormal."""
VALUES = {"nf4": NF4, "fp4": FP4}
ROOM = 0.02
"""Of a block's largest weight: what quantising its scale to 8 bits may cost. Measured at most 0.0053. All weights of a
tensor together may be larger or smaller by as much over the root of its blocks, whose errors are independent. Measured
at most 0.0037 over that root."""
STEPS = 127
ROOM_OF_INT8 = 1.25
"""Half steps of a row's scale. Measured at most 1.09: a row is rounded to float16 before it is coded."""


def share_of_room(original: Array, coded: Array, code: str) -> float:
    """Return how far the worst coded weight is off, as a share of what it may be: at most 1 is right.

    Args:
        original: the weights that were quantised, a whole number of blocks; for ``int8`` (…, out, in).
        coded: what their codes mean, in the same shape.
        code: ``nf4``, ``fp4`` or ``int8``.
    """
    if not np.isfinite(coded).all():
        return float("inf")
    if code == "int8":
        largest = np.abs(original).max(axis=-1, keepdims=True)
        worst = (np.abs(coded - original) / (largest / STEPS / 2)).max() / ROOM_OF_INT8
        return float(max(worst, _larger(coded, original)))
    blocks = original.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    values = np.array(VALUES[code])
    nearest = values[np.abs((blocks / largest)[..., None] - values).argmin(axis=-1)]
    off = np.abs(coded.reshape(-1, BLOCK) - blocks) / largest - np.abs(blocks / largest - nearest)
    return float(max((off / ROOM).max(), _larger(coded.reshape(-1, BLOCK), nearest * largest)))


def _larger(coded: Array, meant: Array) -> float:
    """Return by how much coded weights are larger or smaller than they should be, all together, as a share of room.

    It is the slope of a line through zero, by least squares.
    """
    blocks = meant.size / BLOCK
    return float(abs((coded * meant).sum() / (meant**2).sum() - 1) * blocks**0.5 / ROOM)
