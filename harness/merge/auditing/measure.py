"""One slice of a merged tensor against base + delta, counted element by element.

The reference is ``base + delta`` in float32, rounded once to the merged dtype. Other engines round more often and add
in another order. So equality is asked first and tolerance second. Tolerance has two conditions: within one unit in the
last place of the largest of |base|, |delta| and |result| (plus what float32 accumulation may lose), and unbiased.

The second condition carries the weight where deltas are small. A delta below the spacing of bfloat16 leaves even the
base within one unit. Only the sum over all elements tells a dropped or halved delta from a rounded one. Likewise along
the base: one that is 0.2 % too large is within one unit of bfloat16 everywhere.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable

import torch

from harness.merge.auditing.equality import broken, same
from harness.merge.auditing.expected import ExpectedValues, count
from harness.merge.auditing.tally import LOW_PRECISION, Tally
from harness.merge.write.buffers import Buffers

MANTISSA = {torch.float32: 23, torch.bfloat16: 7, torch.float16: 10}
MIN_EXPONENT = {torch.float32: -126, torch.bfloat16: -126, torch.float16: -14}

Rows = Callable[[int, int], torch.Tensor]
"""Rows ``[first, last)`` of something, as a tensor (rows, columns)."""
Right = Callable[[int, torch.Tensor, torch.dtype], torch.Tensor]
"""Base + delta, rounded once, from (first row, the base's rows, dtype)."""

ACCUMULATION = 16 * 2.0**-24
"""What accumulating a delta in float32 may lose, relative to its largest element."""


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
    work: ExpectedValues | None = None,
    right: Right | None = None,
    scale: float = 1.0,
) -> tuple[Tally, torch.dtype]:
    """Compare a slice piece by piece; return what was counted and the merged dtype.

    A piece that equals base + delta in every element, and not the base, needs no further look. One that still holds the
    base is only looked into further when another does not: then the slice was written, and what stayed behind counts
    against it.

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
    work = work or ExpectedValues(Buffers(torch.device("cpu")))

    def values(first: int, last: int) -> torch.Tensor:
        return delta(first, last) if scale == 1.0 else delta(first, last) * scale

    def add(first: int, last: int) -> None:
        nonlocal dtype
        found, started = merged(first, last), base(first, last)
        dtype = found.dtype
        kept = started.to(dtype)
        unmoved = same(found, kept)
        tally.finite = tally.finite and not broken(found, started)
        tally.moved = tally.moved or not tally.finite
        if right is not None and not tally.telling:
            expected = right(first, started, dtype)
            if not unmoved and same(found, expected) and tally.finite:
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
    tally: Tally, work: ExpectedValues, kept: torch.Tensor, delta: Callable[[int], torch.Tensor], expected: torch.Tensor
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
    work: ExpectedValues,
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
    tally.load, tally.columns = coarser(base.dtype, merged.dtype), merged.shape[1]
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
        parts = [tensor.reshape(-1)[places] for tensor in (base, merged, delta, expected)]
        _add_unexplained(tally, *parts, largest=float(delta.abs().max()))
        wide, change = base.float().reshape(-1), delta.reshape(-1)
        tally.base_square += float(wide.dot(wide))
        tally.delta_square += float(change.dot(change))
        tally.overlap += float(wide.dot(change))


def _add_unexplained(
    tally: Tally,
    base: torch.Tensor,
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
    gap = wide - expected.float()
    along, beside, square = (gap * delta).double(), (gap * base).double(), (delta * delta).double()
    tally.bias += float(along.sum())
    tally.noise += float((along * along).sum())
    tally.skew += float(along.dot(square))
    tally.square += float(square.sum())
    tally.fourth += float(square.dot(square))
    tally.base_bias += float(beside.sum())
    tally.base_noise += float((beside * beside).sum())


def _distance(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> tuple[torch.Tensor, torch.Tensor]:
    """Return |merged - (base + delta)| and one unit in the last place of the largest of the three magnitudes, per
    element.
    """
    target = delta + base
    magnitude = torch.maximum(torch.maximum(base.float().abs(), delta.abs()), target.abs())
    return (merged.float() - target).abs_(), ulp(magnitude, coarser(base.dtype, merged.dtype))


def tolerable(base: torch.Tensor, merged: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
    """Return, per element, whether merged is base + delta to one unit in the last place (and float32 accumulation)."""
    distance, unit = _distance(base, merged, delta)
    return distance <= unit + ACCUMULATION * float(delta.abs().max())
