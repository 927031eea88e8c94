"""One slice of a merged tensor against base + delta: what was counted, and what follows from it.

The reference is ``base + delta`` in float32, rounded once to the merged dtype. Other engines round more often and add in another order,
so equality is asked first and tolerance second: within one unit in the last place of the largest of |base|, |delta| and |result| (plus what
float32 accumulation may lose), and unbiased. The second condition carries the weight where deltas are small: a delta below the spacing
of bfloat16 leaves even the base within one unit, and only the sum over all elements tells a dropped or halved delta from a
rounded one.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass
from math import sqrt

import torch

from harness.merge.auditing.equality import same
from harness.merge.auditing.right import Workspace, count
from harness.merge.sources import all_finite

MANTISSA = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
MIN_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}
ROUNDED = {torch.bfloat16: "bf16-double-rounded", torch.float16: "fp16-double-rounded"}

Rows = Callable[[int, int], torch.Tensor]
"""Rows ``[first, last)`` of something, as a tensor (rows, columns)."""
Right = Callable[[int, torch.Tensor, torch.dtype], torch.Tensor]
"""Base + delta, rounded once, from (first row, the base's rows, dtype)."""

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
    """Counts over the elements of one slice, added up piece by piece.

    ``moved``: merged and base differ somewhere. ``expected_move``: base + delta, rounded once, differs from the base somewhere; ``double_move``: so
    does the delta rounded before it is added. ``exact`` counts elements that equal base + delta rounded once. ``telling`` counts elements
    where merged or expected differ from the base, ``telling_exact`` and ``telling_double`` those of them that equal either formula.
    Over the elements that neither formula explains, ``bias``, ``noise`` and ``reach`` are the sums of (merged - expected) * delta, of its square, and of
    |expected - base| * |delta|.
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

    def add_exact(self, count: int) -> None:
        """Count a piece that is not the base and equals base + delta in every bit, so that the delta is not zero."""
        self.elements += count
        self.exact += count
        self.moved = self.nonzero = True

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


def measure(
    pieces: Iterable[tuple[int, int]],
    base: Rows,
    merged: Rows,
    delta: Rows,
    *,
    work: Workspace | None = None,
    right: Right | None = None,
    scale: float = 1.0,
) -> tuple[Tally, torch.dtype]:
    """Compare a slice piece by piece; return what was counted and the merged dtype.

    A piece that equals base + delta in every element, and not the base, needs no further look. One that still holds the base is only looked into
    further when another does not: then the slice was written, and what stayed behind counts against it.

    Args:
        pieces: (first row, row after the last) of each.
        base: rows of the base, in any float dtype.
        merged: rows of the merged checkpoint, in any float dtype.
        delta: rows of the scaled delta, float32.
        work: buffers to use.
        right: base + delta, rounded once, when there is a quicker way to it than through ``delta``.
        scale: a further factor on the delta.
    """
    tally, still = Tally(), Tally()
    waiting: list[tuple[int, int]] = []
    dtype = torch.float32
    work = work or Workspace()

    def values(first: int, last: int) -> torch.Tensor:
        return delta(first, last) if scale == 1.0 else delta(first, last) * scale

    def add(first: int, last: int) -> None:
        nonlocal dtype
        found, started = merged(first, last), base(first, last)
        dtype = found.dtype
        kept = started if started.dtype == dtype else started.to(dtype)
        unmoved = same(found, kept)
        if right is not None and not tally.telling:
            expected = right(first, started, dtype)
            if not unmoved and same(found, expected) and all_finite(found):
                tally.add_exact(found.numel())
                return
            if unmoved and not tally.moved:
                waiting.append((first, last))
                _add_still(still, work, kept, lambda rows: values(first, first + rows), expected)
                return
        change = values(first, last)
        expected = work.once(started, change, dtype)
        if unmoved and not tally.moved:
            waiting.append((first, last))
            _add_still(still, work, kept, lambda rows: change[:rows], expected)
        else:
            _add(tally, work, started, kept, found, change, expected)

    for piece in pieces:
        add(*piece)
    if tally.moved:
        for piece in waiting:
            add(*piece)
        return tally, dtype
    return still, dtype


def _nonzero(delta: torch.Tensor) -> bool:
    """Return whether any element is not zero; the first row nearly always tells."""
    return bool(delta[0].any()) or bool(delta.any())


def _add_still(
    tally: Tally, work: Workspace, kept: torch.Tensor, delta: Callable[[int], torch.Tensor], expected: torch.Tensor
) -> None:
    """Count a piece that holds the base; ``delta`` gives its first rows."""
    elements, rows = kept.numel(), kept.shape[0]
    tally.elements += elements
    if same(expected, kept):
        tally.exact += elements
        tally.nonzero = tally.nonzero or _nonzero(delta(rows))
        return
    tally.nonzero = tally.expected_move = True
    tally.exact += elements - count(work.differs("inexact", expected, kept))
    if not tally.double_move:
        # A few rows nearly always tell.
        some = (min(rows, 8), rows)
        tally.double_move = any(not same(work.twice(kept[:first], delta(first)), kept[:first]) for first in some)


def _add(
    tally: Tally,
    work: Workspace,
    base: torch.Tensor,
    kept: torch.Tensor,
    merged: torch.Tensor,
    delta: torch.Tensor,
    expected: torch.Tensor,
) -> None:
    """Count a piece of a slice that was written."""
    elements = merged.numel()
    tally.elements += elements
    tally.moved = True
    tally.nonzero = tally.nonzero or _nonzero(delta)
    if same(merged, expected):
        tally.exact += elements
        return
    inexact = work.differs("inexact", merged, expected)
    if base.dtype != merged.dtype:
        # An engine that loads in the merged dtype rounds the base first.
        other = kept.to(torch.float32, copy=True).add_(delta).to(merged.dtype)
        if count(work.differs("other", merged, other)) < count(inexact):
            expected, inexact = other, work.differs("inexact", merged, other)
    # Where merged is not what is expected, one of them is not the base.
    seen = work.differs("moved", merged, kept).bitwise_or_(inexact)
    telling, wrong = count(seen), count(inexact)
    tally.exact += elements - wrong
    tally.telling += telling
    tally.telling_exact += telling - wrong
    double = work.twice(kept, delta)
    if same(merged, double):
        tally.telling_double += telling
        return
    undouble = work.differs("undouble", merged, double)
    tally.telling_double += telling - count(seen & undouble)
    places = (inexact & undouble).nonzero().squeeze(1)
    if places.numel():
        parts = [tensor.reshape(-1)[places] for tensor in (base, kept, merged, delta, expected)]
        _add_unexplained(tally, *parts, largest=float(delta.abs().max()))


def _add_unexplained(
    tally: Tally,
    base: torch.Tensor,
    kept: torch.Tensor,
    merged: torch.Tensor,
    delta: torch.Tensor,
    expected: torch.Tensor,
    *,
    largest: float,
) -> None:
    """Count elements that equal neither formula; all are vectors."""
    wide = merged.float()
    if not bool(torch.isfinite(wide).all()):
        tally.finite = False
        return
    distance, unit = _distance(base, merged, delta)
    tally.within_ulp = tally.within_ulp and bool((distance <= unit + ACCUMULATION * largest).all())
    tally.within_low = tally.within_low and bool((distance <= unit + LOW_PRECISION * largest).all())
    right = expected.float()
    gap = ((wide - right) * delta).double()
    tally.bias += float(gap.sum())
    tally.noise += float((gap * gap).sum())
    tally.reach += float(((right - kept.float()) * delta).double().abs().sum())


def _distance(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return |merged - (base + delta)| and one unit in the last place of the largest of the three magnitudes, per element."""
    target = delta + base
    magnitude = torch.maximum(torch.maximum(base.float().abs(), delta.abs()), target.abs())
    return (merged.float() - target).abs_(), ulp(magnitude, coarser(base.dtype, merged.dtype))


def tolerable(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Return, per element, whether merged is base + delta to one unit in the last place (and float32 accumulation)."""
    distance, unit = _distance(base, merged, delta)
    return distance <= unit + ACCUMULATION * float(delta.abs().max())
