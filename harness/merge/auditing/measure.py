"""One slice of a merged tensor against base + delta: what was counted, and what follows from it.

The reference is ``base + delta`` in float32, rounded once to the merged dtype. Other engines round more often and add in another order,
so equality is asked first and tolerance second: within one unit in the last place of the largest of |base|, |delta| and |result| (plus what
float32 accumulation may lose), and unbiased. The second condition carries the weight where deltas are small: a delta below the spacing
of bfloat16 leaves even the base within one unit, and only the sum over all elements tells a dropped or halved delta from a
rounded one.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from math import sqrt

import torch

MANTISSA = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
MIN_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}
ROUNDED = {torch.bfloat16: "bf16-double-rounded", torch.float16: "fp16-double-rounded"}

ACCUMULATION = 16 * 2.0**-24
"""What accumulating a delta in float32 may lose, relative to its largest element."""
LOW_PRECISION = 2.0**-6
"""What computing a delta in bfloat16 or TF32 may lose, relative to its largest element."""
SIGMAS = 6.0
"""Noise of the sum of rounding differences that is still unbiased: with 10^5 tensors, none is taken for biased by chance."""
SYSTEMATIC = 2.0**-7
"""Relative error of the whole delta that rounding the scaling or the factors to bfloat16 may cause."""
DOUBLE_SHARE = 0.97
"""Share of the changed elements that the double-rounding formula must explain; another order of accumulation flips a few."""


@dataclass(slots=True)
class Tally:
    """Counts over the elements of one slice, added up chunk by chunk.

    ``moved``: merged and base differ somewhere. ``expected_move``: base + delta, rounded once, differs from the base somewhere; ``double_move``: so
    does the delta rounded before it is added. ``telling`` counts elements where merged or expected differ from the base;
    ``exact`` and ``double`` the elements that equal either formula, ``telling_exact`` and ``telling_double`` those among the telling.
    ``bias``, ``noise`` and ``reach`` are sums of (merged - expected) * delta, its square, and |expected - base| * |delta|.
    """

    elements: int = 0
    nonzero: bool = False
    moved: bool = False
    expected_move: bool = False
    double_move: bool = False
    finite: bool = True
    exact: int = 0
    telling: int = 0
    telling_exact: int = 0
    telling_double: int = 0
    within_ulp: bool = True
    within_low: bool = True
    bias: float = 0.0
    noise: float = 0.0
    reach: float = 0.0

    @property
    def unbiased(self) -> bool:
        """Whether what differs from the expected values does so at random."""
        return abs(self.bias) <= SIGMAS * sqrt(self.noise) + SYSTEMATIC * self.reach

    @property
    def exact_share(self) -> float:
        """Share of elements that equal base + delta rounded once."""
        return self.exact / self.elements if self.elements else 1.0

    def applied(self, dtype: torch.dtype) -> str | None:
        """Return how the delta was applied, or None when it was not."""
        if not self.finite:
            return None
        if self.exact == self.elements:
            return "bit-exact"
        if not self.unbiased or not self.within_low:
            return None
        double = self.telling_double / self.telling if self.telling else 0.0
        if dtype in ROUNDED and double >= DOUBLE_SHARE and self.telling_double > self.telling_exact:
            return ROUNDED[dtype]
        return "1-ulp" if self.within_ulp else "low-precision"

    def unmoved(self) -> tuple[str, str]:
        """Return (verdict, detail) of a slice that equals the base in every element."""
        if not self.nonzero:
            return "indistinguishable", "zero-delta"
        if not self.expected_move or not self.double_move:
            return "indistinguishable", "below-rounding"
        return "untouched", "still the base"


def coarser(base: torch.dtype, merged: torch.dtype) -> torch.dtype:
    """Return the dtype with the shorter mantissa: what passed through both is rounded to it."""
    return base if MANTISSA[base] < MANTISSA[merged] else merged


def ulp(magnitude: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Return one unit in the last place of ``dtype`` at each magnitude (float32)."""
    exponent = torch.frexp(magnitude).exponent - 1
    floor = MIN_EXPONENT[dtype] - MANTISSA[dtype]
    return torch.ldexp(torch.ones_like(magnitude), torch.clamp(exponent - MANTISSA[dtype], min=floor))


def add(tally: Tally, base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> None:
    """Count one chunk.

    Args:
        tally: what to add to.
        base: (rows, columns) as stored in the base.
        merged: (rows, columns) as stored in the merged checkpoint.
        delta: (rows, columns), float32, scaled.
    """
    dtype = merged.dtype
    kept = base if base.dtype == dtype else base.to(dtype)
    expected = (delta + base).to(dtype)
    tally.elements += merged.numel()
    same = torch.equal(merged, kept)
    tally.moved |= not same
    if torch.equal(merged, expected):
        tally.exact += merged.numel()
        if same:
            # Nothing was expected to move and nothing did; whether the delta is zero only matters for the words.
            tally.nonzero = tally.nonzero or bool(delta.any())
        else:
            tally.nonzero = tally.expected_move = tally.double_move = True
        return
    _add_differing(tally, base, kept, merged, delta, expected)


def _add_differing(
    tally: Tally,
    base: torch.Tensor,
    kept: torch.Tensor,
    merged: torch.Tensor,
    delta: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    dtype = merged.dtype
    tally.nonzero = tally.nonzero or bool(delta.any())
    if base.dtype != dtype:
        # An engine that loads in the merged dtype rounds the base first.
        expected = _nearer(merged, expected, (delta + kept).to(dtype))
    double = (kept.float() + delta.to(dtype)).to(dtype)
    exact = merged == expected
    telling = (merged != kept) | (expected != kept)
    tally.expected_move |= bool((expected != kept).any())
    tally.double_move |= bool((double != kept).any())
    tally.exact += int(exact.sum())
    tally.telling += int(telling.sum())
    tally.telling_exact += int((exact & telling).sum())
    tally.telling_double += int(((merged == double) & telling).sum())
    wide = merged.float()
    if not bool(torch.isfinite(wide).all()):
        tally.finite = False
        return
    target = delta + base
    distance = (wide - target).abs_()
    magnitude = torch.maximum(torch.maximum(base.float().abs(), delta.abs()), target.abs())
    unit = ulp(magnitude, coarser(base.dtype, dtype))
    largest = float(delta.abs().max())
    tally.within_ulp = tally.within_ulp and bool((distance <= unit + ACCUMULATION * largest).all())
    tally.within_low = tally.within_low and bool((distance <= unit + LOW_PRECISION * largest).all())
    gap = ((wide - expected.float()) * delta).double()
    tally.bias += float(gap.sum())
    tally.noise += float((gap * gap).sum())
    tally.reach += float(((expected.float() - kept.float()) * delta).double().abs().sum())


def _nearer(merged: torch.Tensor, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
    """Return whichever of two expectations agrees with more elements."""
    return other if int((merged == other).sum()) > int((merged == one).sum()) else one


def alignment(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> float:
    """Return the cosine between what moved and what this delta would have moved, both rounded; 0 where either is nothing."""
    kept = base.to(merged.dtype).float()
    moved = (merged.float() - kept).double().flatten()
    expected = ((delta + base).to(merged.dtype).float() - kept).double().flatten()
    size = float(moved.norm() * expected.norm())
    return float(moved @ expected) / size if size and torch.isfinite(torch.tensor(size)) else 0.0


def fitted_scale(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> float:
    """Return the least-squares factor of ``delta`` in ``merged - base``.

    Rounding biases the plain quotient where deltas are below the dtype's spacing, so it is corrected until the rounded
    prediction has the same projection.
    """
    kept = base.to(merged.dtype).float()
    wide = delta.double()
    moved = float(((merged.float() - kept).double() * wide).sum())
    scale = moved / max(float((wide * wide).sum()), 1e-300)
    for _ in range(CORRECTIONS):
        reached = float((((delta * scale + base).to(merged.dtype).float() - kept).double() * wide).sum())
        if reached == 0 or moved == 0:
            return scale
        scale *= moved / reached
    return scale


CORRECTIONS = 6
Rows = Callable[[int, int], torch.Tensor]
"""Rows ``[first, last)`` of something, as a tensor (rows, columns)."""
