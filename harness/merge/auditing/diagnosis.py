"""What a tensor holds when it is neither the base nor base + delta: another scale, or the delta read in another way.

Only slices that failed come here. The adapter's own delta with a fitted scale is tried first. Then comes every
misreading that is known to happen: the other B packing, the other io layout, both, lora_A packed like lora_B,
transposition, gate and up exchanged, another expert's delta, another expert's weights. Candidates are screened on a few
rows, by the angle between what moved and what they would have moved. The best one has to stand the same test on all
rows as the right delta would have.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace

import torch

from harness.merge.auditing.equality import NON_FINITE
from harness.merge.auditing.fingerprints import ELEMENTS, Fingerprints
from harness.merge.auditing.fitting import alignment, fitted_base_scale, fitted_scale
from harness.merge.auditing.measure import Rows, measure, tolerable
from harness.merge.auditing.slices import Siblings, Slice
from harness.merge.auditing.source import Source
from harness.merge.base.families import family_of
from harness.merge.plan.merge_plan import PairContribution

SCREENED = 1 << 18
"""Elements on which the candidates that are few are compared."""
ALIGNED = 0.85
"""Cosine that a candidate must reach on the screened rows; random directions reach 0.01."""
TURNED_ELEMENTS = 1 << 24
"""Slices larger than this are not read whole to be transposed."""
NEGLIGIBLE = 1e-3
"""Scales below this are no delta at all."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Diagnosis:
    """The verdict on a slice that failed, why, and the fitted scale.

    ``candidate`` is the reading that fitted, to be tried first on the next slice.
    """

    verdict: str
    detail: str
    scale: float | None = None
    candidate: str | None = None


@dataclass(frozen=True, slots=True, kw_only=True)
class Candidate:
    """One way in which the slice may have come about: merged = base + delta, with any of the three replaced."""

    name: str
    told: str
    base: Rows
    merged: Rows
    delta: Rows


class Doctor:
    """Tries candidates; remembers which one fitted last, because what one expert suffered its neighbours did too."""

    def __init__(self, source: Source, siblings: Siblings, fingerprints: Fingerprints) -> None:
        self._source = source
        self._siblings = siblings
        self._fingerprints = fingerprints
        self._last: str | None = None

    def diagnose(self, item: Slice) -> Diagnosis:
        """Return what a slice holds that is neither the base nor base + delta."""
        own = self._candidate(item, "own", "")
        scaled = self._scaled(own, item)
        if scaled is not None and scaled.scale is not None:
            return scaled
        if (rebased := self._rebased(own, item)) is not None:
            return rebased
        found = self._scrambled(item)
        if found is not None:
            self._last = found.candidate
            return found
        return Diagnosis(verdict="wrong", detail=self._describe(own, item))

    def _candidate(
        self,
        item: Slice,
        name: str,
        told: str,
        *,
        delta: Rows | None = None,
        base: Rows | None = None,
        merged: Rows | None = None,
    ) -> Candidate:
        source = self._source
        return Candidate(
            name=name,
            told=told,
            base=base or (lambda first, last: source.base_rows(item, first, last)),
            merged=merged or (lambda first, last: source.merged_rows(item, first, last)),
            delta=delta or (lambda first, last: source.delta_rows(item, first, last)),
        )

    def _scrambled(self, item: Slice) -> Diagnosis | None:
        window = self._window(item)
        remembered = [one for one in self._candidates(item) if one.name == self._last]
        for one in remembered:
            if abs(_aligned(one, window)) >= ALIGNED and (found := self._verify(one, item)):
                return found
        ranked = sorted(
            ((abs(_aligned(one, window)), one) for one in self._candidates(item)),
            key=lambda pair: pair[0],
            reverse=True,
        )
        ranked += self._ranked_siblings(item, window)
        for score, one in sorted(ranked, key=lambda pair: pair[0], reverse=True):
            if score < ALIGNED:
                break
            if found := self._verify(one, item):
                return found
        return None

    def _verify(self, one: Candidate, item: Slice) -> Diagnosis | None:
        """Return the diagnosis when a candidate explains every row, as it is or with one scale."""
        if self._explains(one, item, 1.0) is not None:
            return Diagnosis(verdict="scrambled", detail=one.told, candidate=one.name)
        scaled = self._scaled(one, item)
        if scaled is None or scaled.scale is None:
            return None
        return Diagnosis(
            verdict="scrambled", detail=f"{one.told}, {scaled.detail}", scale=scaled.scale, candidate=one.name
        )

    def _explains(self, one: Candidate, item: Slice, scale: float) -> str | None:
        tally, dtype = measure(self._source.pieces(item), one.base, one.merged, one.delta, scale=scale)
        return tally.applied(dtype) if tally.nonzero and tally.moved else None

    def _scaled(self, one: Candidate, item: Slice) -> Diagnosis | None:
        """Return ``partial`` with the fitted scale when the candidate's delta, scaled, explains every row."""
        first, last = self._window(item)
        delta = one.delta(first, last)
        scale = fitted_scale(one.base(first, last), one.merged(first, last), delta)
        if not NEGLIGIBLE < abs(scale) < 1 / NEGLIGIBLE or self._explains(one, item, scale) is None:
            return None
        nice = round(scale, 3)
        if nice != scale and nice and self._explains(one, item, nice) is not None:
            scale = nice
        configured = self._source.plan.contributions[item.contribution].scaling
        said = "" if item.others else f" ({scale * configured:.4g} instead of {configured:.4g})"
        return Diagnosis(verdict="partial", detail=f"applied at {scale:.4g} times its scale{said}", scale=scale)

    def _rebased(self, own: Candidate, item: Slice) -> Diagnosis | None:
        """Return ``wrong`` with the fitted factor when the right delta lies on a scaled base."""
        first, last = self._window(item)
        fitted = fitted_base_scale(own.base(first, last), own.merged(first, last), own.delta(first, last))
        for factor in (round(fitted, 3) + 0.0, fitted):  # never -0.0
            if factor != 1 and self._explains(replace(own, base=_times(own.base, factor)), item, 1.0) is not None:
                return Diagnosis(verdict="wrong", detail=f"base + delta, the base at {factor:.5g} times itself")
        return None

    def _window(self, item: Slice) -> tuple[int, int]:
        """Return the rows to screen on: the first window in which anything moved."""
        step = max(1, SCREENED // item.columns)
        windows = [(first, min(first + step, item.rows)) for first in range(0, item.rows, step)]
        for first, last in windows:
            merged = self._source.merged_rows(item, first, last)
            if not torch.equal(merged, self._source.base_rows(item, first, last).to(merged.dtype)):
                return first, last
        return windows[0]

    def _candidates(self, item: Slice) -> Iterator[Candidate]:
        """Yield the misreadings that shapes allow for this slice, the expert order apart; of a vector there is none."""
        contribution = self._source.plan.contributions[item.contribution]
        if item.others:
            return self._lacking(item)
        return self._misread(item, contribution) if isinstance(contribution, PairContribution) else iter(())

    def _lacking(self, item: Slice) -> Iterator[Candidate]:
        """Yield the sum without each one of several adapters' deltas; how those are read is not doubted."""
        plan = self._source.plan
        for term in item.terms:
            position = plan.contributions[term.contribution].adapter
            told = f"without the delta of adapter {position + 1} ({plan.parts[position].adapter.root.name})"
            rest = _of(self._source.delta_rows, item.lacking(term))
            yield self._candidate(item, f"without{position}", told, delta=rest)

    def _misread(self, item: Slice, contribution: PairContribution) -> Iterator[Candidate]:
        source = self._source

        def read_as(changed: PairContribution, *, mixed_a: bool = False) -> Rows:
            return lambda first, last: source.delta_rows(item, first, last, contribution=changed, mixed_a=mixed_a)

        square = contribution.pair.features[0] == contribution.pair.features[1]
        if contribution.num_experts is not None:
            packing = "rank_major" if contribution.grouped_by_expert else "grouped_by_expert"
            planned = source.plan.io_layout
            layout = "swapped" if planned is not None and planned.value == "standard" else "standard"
            repacked = replace(contribution, grouped_by_expert=not contribution.grouped_by_expert)
            if contribution.num_experts > 1 and contribution.rank > 1:
                yield self._candidate(item, "packing", f"lora_B read as {packing}", delta=read_as(repacked))
                told = "lora_A read as rank_major, like lora_B"
                yield self._candidate(item, "packing_a", told, delta=read_as(contribution, mixed_a=True))
            if square:
                turned = replace(contribution, swapped=not contribution.swapped)
                yield self._candidate(item, "layout", f"io layout read as {layout}", delta=read_as(turned))
                both = replace(repacked, swapped=not contribution.swapped)
                told = f"io layout read as {layout} and lora_B as {packing}"
                yield self._candidate(item, "layout+packing", told, delta=read_as(both))
            if (half := self._half(contribution, item)) is not None:
                yield self._candidate(
                    item,
                    "halves",
                    "gate and up exchanged",
                    delta=lambda first, last: source.exchanged(item, contribution, half, first, last),
                )
        elif square:
            turned = replace(contribution, swapped=not contribution.swapped)
            yield self._candidate(item, "transposed", "the delta transposed", delta=read_as(turned))
        if (other := self._siblings.other_half(item)) is not None:
            yield self._candidate(
                item, "halves", "gate and up exchanged", delta=lambda first, last: source.delta_rows(other, first, last)
            )
        if item.rows == item.columns and item.rows * item.columns <= TURNED_ELEMENTS:
            if contribution.num_experts is not None:
                yield self._candidate(item, "turned", "the delta transposed", delta=_turned(source.delta_rows, item))
            yield self._candidate(
                item, "stored", "the weight stored transposed", merged=_turned(source.merged_rows, item)
            )

    def _half(self, contribution: PairContribution, item: Slice) -> int | None:
        """Return the number of rows of gate_proj when the slice is part of a fused gate_up_proj, whose halves are runs
        of rows.
        """
        if not contribution.name.endswith("gate_up_proj") or family_of(self._source.plan.base.config).transposed:
            return None
        out = contribution.pair.lora_A.shape[1] if contribution.swapped else contribution.pair.lora_B.shape[0]
        return out // 2 if item.rows in {out, out // 2} else None

    def _ranked_siblings(self, item: Slice, window: tuple[int, int]) -> list[tuple[float, Candidate]]:
        """Return the other experts' deltas, and weights, that could be here, with their scores."""
        source, siblings = self._source, self._siblings.of(item)
        if len(siblings) < 2:  # noqa: PLR2004 - the slice itself and another
            return []
        first = window[0]
        last = min(window[1], first + max(1, ELEMENTS // item.columns))
        fingerprint = self._fingerprints.of(item, first, last, source)
        base, merged = (rows(item, first, last).clone() for rows in (source.base_rows, source.merged_rows))
        deltas, weights = fingerprint.likeliest(item, base, merged)
        ranked: list[tuple[float, Candidate]] = []
        for number in deltas:
            told = f"the delta of expert {number}"
            one = self._candidate(item, f"expert{number}", told, delta=_of(source.delta_rows, siblings[number]))
            ranked.append((abs(_aligned(one, (first, last))), one))
        for number in weights:
            delta, kept = (_of(rows, siblings[number]) for rows in (source.delta_rows, source.base_rows))
            near = float((merged.float() - kept(first, last).float() - delta(first, last)).norm())
            if near < (1 - ALIGNED) * float((merged.float() - base.float()).norm()):
                told = f"the weights of expert {number}, merged"
                ranked.append((1.0, self._candidate(item, f"weights{number}", told, base=kept, delta=delta)))
        return ranked

    def _describe(self, own: Candidate, item: Slice) -> str:
        """Say what is known of a slice that nothing explains."""
        rows_kept = rows_right = 0
        finite = True
        for first, last in self._source.pieces(item):
            delta, merged = own.delta(first, last), own.merged(first, last)
            base = own.base(first, last)
            finite = finite and bool(torch.isfinite(merged.float()).all())
            kept = (merged == base.to(merged.dtype)).all(dim=1)
            right = tolerable(base, merged, delta).all(dim=1)
            rows_kept += int((kept & ~right).sum())
            rows_right += int(right.sum())
        if not finite:
            return NON_FINITE
        if rows_kept:
            return f"{rows_kept} of {item.rows} rows are still the base's, {rows_right} are base + delta"
        first, last = self._window(item)
        cosine = _aligned(own, (first, last))
        return f"neither the base nor any known reading of the delta (cosine {cosine:.2f} with the right one)"


def _aligned(one: Candidate, window: tuple[int, int]) -> float:
    delta = one.delta(*window)
    return alignment(one.base(*window), one.merged(*window), delta)


def _of(rows: Callable[[Slice, int, int], torch.Tensor], item: Slice) -> Rows:
    return lambda first, last: rows(item, first, last)


def _turned(rows: Callable[[Slice, int, int], torch.Tensor], item: Slice) -> Rows:
    return lambda first, last: rows(item, 0, item.rows).T[first:last].contiguous()


def _times(rows: Rows, factor: float) -> Rows:
    return lambda first, last: rows(first, last).float() * factor
