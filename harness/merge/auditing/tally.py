"""What was counted over the elements of one slice: how the delta was applied, and whether errors are random.

Rounding at random leaves sums that grow with the square root of the number of elements. Another scale, of the delta or
the base, leaves sums that grow with the number. So a slice may be right to one unit everywhere and still be wrong.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import inf, sqrt

import torch

ROUNDED = {torch.bfloat16: "bf16-double-rounded", torch.float16: "fp16-double-rounded"}
LOW_PRECISION = 2.0**-6
"""What computing a delta in bfloat16 or TF32 may lose, relative to its largest element."""
SIGMAS = 6.0
"""Noise of the sum of rounding differences that is still unbiased: with 10^5 tensors, none is taken for biased by
chance.
"""
SYSTEMATIC = 2.0**-7
"""Relative error of the whole delta that rounding the scaling or the factors to bfloat16 may cause."""
ROUGHNESS = 4.0
"""Relative error of the whole delta in units of what it errs by at random: what rounds the scaling rounds the elements
too, by half a unit at most (sqrt(3) times the mean).
"""
DOUBLE_SHARE = 0.97
"""Share of the changed elements that the double-rounding formula must explain.

Another order of accumulation flips a few.
"""


@dataclass(slots=True)
class Tally:
    """Counts over the elements of one slice, added up piece by piece.

    Attributes:
        load: the coarser dtype of base and merged.
        columns: the length of a row.
        elements: how many there are.
        nonzero: the delta is not zero everywhere.
        moved: merged and base differ somewhere.
        expected_move: base + delta, rounded once, differs from the base somewhere.
        double_move: base + delta, the delta rounded before it is added, does.
        finite: nothing became NaN or infinite.
        exact: how many elements equal base + delta rounded once.
        telling: how many elements differ from the base, in the merged checkpoint or as expected.
        telling_exact: how many of the telling ones equal base + delta rounded once.
        telling_double: how many of them equal it with the delta rounded first.
        within_ulp: what neither formula explains is within one unit in the last place.
        within_low: it is within what low precision loses.
        bias: over what neither explains, the sum of (merged - expected) * delta.
        noise: the sum of the squares of that.
        skew: the sum of (merged - expected) * delta^3.
        square: the sum of delta^2.
        fourth: the sum of delta^4.
        base_bias: as ``bias``, with base for delta.
        base_noise: as ``noise``, with base for delta.
        base_square: over all elements of pieces that hold such, the sum of base * base.
        delta_square: over the same, the sum of delta * delta.
        overlap: over the same, the sum of base * delta.
    """

    load: torch.dtype = torch.float32
    columns: int = 1
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
    skew: float = 0.0
    square: float = 0.0
    fourth: float = 0.0
    base_bias: float = 0.0
    base_noise: float = 0.0
    base_square: float = 0.0
    delta_square: float = 0.0
    overlap: float = 0.0

    def add_exact(self, count: int) -> None:
        """Count a piece that is not the base and equals base + delta in every bit, so that the delta is not zero."""
        self.elements += count
        self.exact += count
        self.moved = self.nonzero = True

    @property
    def unbiased(self) -> bool:
        """Whether what differs from the expected values does so at random, along the delta and along the base."""
        systematic = min(SYSTEMATIC, ROUGHNESS * self._roughness)
        return abs(self.bias) <= SIGMAS * sqrt(self.noise) + systematic * self.delta_square and self._base_unbiased

    @property
    def _roughness(self) -> float:
        """Relative error that is left in the delta's elements once the best factor on all of it is taken out, weighted
        as ``noise`` is.
        """
        if not self.fourth:
            return inf
        factor = self.bias / self.square
        rest = self.noise - 2 * factor * self.skew + factor * factor * self.fourth
        return sqrt(max(rest, 0.0) / self.fourth)

    @property
    def _base_unbiased(self) -> bool:
        """Whether the base is there at its own scale.

        Rounding n elements at random leaves about one unit / sqrt(n) of the base. Three things stay beside that. Where
        powers of two halve the spacing, rounding up and down differ, on one of 1 / eps mantissas by less than half a
        unit. Factors rounded to bfloat16 have an error of their own in each column, so that a base along the delta sees
        1 / sqrt(columns) of it. And what a base that is not orthogonal to the delta sees of the delta's own (tolerated)
        bias is no bias of its own.
        """
        seen = self.bias * self.overlap / self.delta_square if self.delta_square else 0.0
        spacing = torch.finfo(self.load).eps / 64 * self.base_square
        factors = LOW_PRECISION * sqrt(self.base_square * self.delta_square / self.columns)
        return bool(abs(self.base_bias - seen) <= SIGMAS * sqrt(self.base_noise) + spacing + factors)

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
