"""DoRA: each output feature of base + delta, scaled to its magnitude, against the merged checkpoint.

The right scale of a feature is magnitude / norm(base + delta)
(``peft.tuners.lora.variants.DoraLinearVariant.merge_unsafe``). Engines compute the norm in the model's dtype, which
moves a whole feature by more than its delta. So size and direction are judged apart. The scale that a feature was
really given has to be the right one as far as the dtype goes, and on the whole without bias. Base + delta at that scale
has to be there element by element, by the same two tests as a plain delta (``measure``).
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import sqrt

import torch

from harness.merge.auditing.equality import NON_FINITE, broken, identical, same
from harness.merge.auditing.measure import coarser, ulp
from harness.merge.auditing.slice_verdicts import Found
from harness.merge.auditing.slices import Slice
from harness.merge.auditing.source import Source
from harness.merge.auditing.tally import LOW_PRECISION, SIGMAS, SYSTEMATIC, Tally
from harness.merge.plan.merge_plan import PairContribution

STRETCH = {torch.float32: 2.0**-16, torch.bfloat16: 2.0**-7, torch.float16: 2.0**-10}
"""Relative error of a feature's scale where sum, norm, magnitude and quotient are rounded to a dtype (float32: where
norms add up thousands of squares).
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class _Piece:
    """Rows of a slice, (rows, columns): ``base`` as stored, ``merged``, and in float32 the delta, base + delta, and the
    scale as it broadcasts.
    """

    base: torch.Tensor
    merged: torch.Tensor
    delta: torch.Tensor
    values: torch.Tensor
    scale: torch.Tensor


class _Slice:
    """A slice with DoRA.

    Features are rows, or where the stored weight is transposed columns, whose norms need all rows first.
    """

    def __init__(self, source: Source, item: Slice, contribution: PairContribution) -> None:
        self._source, self._item, self._swapped = source, item, contribution.swapped
        magnitude = source.adapter.magnitude(contribution)
        if contribution.swapped:
            squares = sum(
                torch.linalg.vector_norm(self._sum(*rows)[0], dim=0, dtype=torch.float64) ** 2
                for rows in source.pieces(item)
            )
            self._scale = (magnitude.double() / torch.as_tensor(squares).sqrt()).float()
        else:
            self._scale = magnitude[item.offset : item.offset + item.rows]

    def _sum(self, first: int, last: int) -> tuple[torch.Tensor, torch.Tensor, torch.Tensor]:
        """Return (base + delta, base, delta)."""
        delta = self._source.delta_rows(self._item, first, last)
        base = self._source.base_rows(self._item, first, last)
        return delta + base, base, delta

    def pieces(self) -> Iterator[tuple[tuple[int, int], _Piece]]:
        """Yield (first row, row after the last) and what lies there."""
        for first, last in self._source.pieces(self._item):
            values, base, delta = self._sum(first, last)
            if self._swapped:
                scale = self._scale.unsqueeze(0)
            else:
                scale = (self._scale[first:last] / torch.linalg.vector_norm(values, dim=1)).unsqueeze(1)
            merged = self._source.merged_rows(self._item, first, last)
            yield (first, last), _Piece(base=base, merged=merged, delta=delta, values=values, scale=scale)

    def given(self) -> tuple[torch.Tensor, torch.Tensor]:
        """Return, per feature in float64, the scale that it was given and the right one.

        Both are quotients of norms, whatever the direction.
        """
        along = 0 if self._swapped else 1
        found, plain, right = [], [], []
        for _, piece in self.pieces():
            found.append(torch.linalg.vector_norm(piece.merged, dim=along, dtype=torch.float64))
            plain.append(torch.linalg.vector_norm(piece.values, dim=along, dtype=torch.float64))
            right.append(piece.scale.double().flatten())
        if self._swapped:
            return torch.stack(found).norm(dim=0) / torch.stack(plain).norm(dim=0), right[0]
        return torch.cat(found) / torch.cat(plain), torch.cat(right)

    def spread(self, scale: torch.Tensor, rows: tuple[int, int]) -> torch.Tensor:
        """Return the part of a scale per feature that broadcasts over some rows."""
        return scale.unsqueeze(0) if self._swapped else scale[rows[0] : rows[1]].unsqueeze(1)


def judge_dora(source: Source, item: Slice, contribution: PairContribution) -> Found:
    """Return what a slice with DoRA holds."""
    read = _Slice(source, item, contribution)
    elements = exact = 0
    moved = visible = False
    touched = False
    dtype = load = torch.float32
    for _, piece in read.pieces():
        dtype, load = piece.merged.dtype, coarser(piece.base.dtype, piece.merged.dtype)
        kept, expected = piece.base.to(dtype), (piece.values * piece.scale).to(dtype)
        if broken(piece.merged, piece.base):
            return Found(number=item.number, verdict="wrong", detail=NON_FINITE)
        elements += kept.numel()
        exact += kept.numel() if identical(piece.merged, expected) else int((piece.merged == expected).sum())
        moved = moved or not same(piece.merged, kept)
        # A scale that differs from one by less than norms are known to is none.
        stretched = bool(((piece.scale - 1).abs() > STRETCH[load]).any())
        touched = touched or stretched or bool(piece.delta.any())
        if not visible:
            coarse = (piece.base.float() + piece.delta.to(dtype)).to(dtype).float() * piece.scale
            visible = not same(expected, kept) and not same(coarse.to(dtype), kept)
    if moved and exact != elements:
        verdict, detail = _judge(read, load)
    elif moved:
        verdict, detail = "applied", "bit-exact"
    elif visible:
        verdict, detail = "untouched", "still the base"
    else:
        verdict, detail = "indistinguishable", "below-rounding"
    if not touched and verdict != "wrong":
        verdict, detail = "indistinguishable", "zero-delta"
    return Found(number=item.number, verdict=verdict, detail=detail, exact=exact, elements=elements)


def _judge(read: _Slice, load: torch.dtype) -> tuple[str, str]:
    """Return (verdict, detail) of a slice that was written and is not right in every bit."""
    given, right = read.given()
    if not bool(torch.isfinite(given).all()):
        return "wrong", NON_FINITE
    sized, tally = _right_size(given, right, STRETCH[load]), _direction(read, given, load)
    directed = tally.unbiased and tally.within_low
    if sized and directed:
        return "applied", "1-ulp" if tally.within_ulp else "low-precision"
    if directed:
        plain = bool(((given - 1).abs() <= STRETCH[load]).all())
        return "wrong", "base + delta, not scaled to its magnitude" if plain else "base + delta at another magnitude"
    if sized:
        return "wrong", "at its magnitude, in another direction than base + delta"
    return "wrong", "neither the direction of base + delta nor its magnitude"


def _right_size(given: torch.Tensor, right: torch.Tensor, stretch: float) -> bool:
    """Return whether the scales are the right ones: each to within ``stretch``, and all together without a pull back to
    one.
    """
    if bool(((given / right - 1).abs() > stretch).any()):
        return False
    change = right - 1
    size = float((change * change).sum())
    if not size:
        return True
    reached = float(((given - 1) * change).sum()) / size
    return abs(reached - 1) <= SIGMAS * stretch / sqrt(3 * size) + 2 * SYSTEMATIC


def _direction(read: _Slice, given: torch.Tensor, load: torch.dtype) -> Tally:
    """Compare with base + delta at the given scales, element by element, as ``measure`` does with a plain delta."""
    tally = Tally(load=load)
    for rows, piece in read.pieces():
        scale = read.spread(given, rows).float()
        delta, target = piece.delta * scale, piece.values * scale
        gap = piece.merged.float() - target
        magnitude = torch.stack((piece.base.float().abs(), piece.values.abs(), target.abs(), piece.delta.abs())).amax(0)
        unit = ulp(magnitude, load) * torch.clamp(scale.abs(), min=1)
        # Where float32 is all there is, four operations round on the way.
        unit = 4 * unit if load == torch.float32 else unit
        largest = float(delta.abs().max())
        tally.within_ulp = tally.within_ulp and bool((gap.abs() <= unit).all())
        tally.within_low = tally.within_low and bool((gap.abs() <= unit + LOW_PRECISION * largest).all())
        pull = (gap * delta).double()
        tally.bias += float(pull.sum())
        tally.noise += float((pull * pull).sum())
        tally.delta_square += float((delta * delta).double().sum())
    return tally
