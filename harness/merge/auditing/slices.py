"""The unit of comparison: rows of one base tensor that get one slice of a delta, or are replaced by the adapter's.

A plan's region and a pairing's piece are both runs of elements of a base tensor. Where they overlap, one expert's (or
one Linear's) delta meets one run of merged elements. Slices of one pair that belong to different experts are each
other's siblings: in a merge that mixed up the order of experts, one of them fits.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass, replace

from harness.merge.auditing.pairing import Pairing
from harness.merge.base.names import common, expert_module
from harness.merge.base.weight import PlainSource, QuantisedSource
from harness.merge.plan.merge_plan import MergePlan, PairContribution, PlanRow, Term

Group = tuple[object, ...]


@dataclass(frozen=True, slots=True, kw_only=True)
class Slice:
    """``rows`` x ``columns`` elements from ``start`` of base tensor ``key``, at ``merged_start`` of ``merged_key``.

    Attributes:
        source: what the base has there, None where it has nothing.
        contribution: position in ``MergePlan.contributions``.
        expert: which expert of that pair, None for a Linear's.
        offset: the first row of that delta.
        number: which expert of the layer it is, None outside the experts.
        replaced: whether the adapter's rows stand instead of the base's.
        base_replacement: the adapter's rows that do, where the delta goes on top of them.
        others: what further adapters add.
    """

    key: str
    source: PlainSource | QuantisedSource | None
    start: int
    rows: int
    columns: int
    contribution: int
    expert: int | None
    offset: int
    number: int | None
    merged_key: str
    merged_start: int
    replaced: bool = False
    base_replacement: Term | None = None
    others: tuple[Term, ...] = ()

    @property
    def term(self) -> Term:
        """What the slice is of, as the plan says it."""
        return Term(contribution=self.contribution, expert=self.expert, offset=self.offset)

    @property
    def terms(self) -> tuple[Term, ...]:
        """What is summed in the slice."""
        return (self.term, *self.others)

    def lacking(self, lost: Term) -> Slice:
        """Return the slice without one of its several terms."""
        first, *rest = (term for term in self.terms if term != lost)
        return replace(
            self, contribution=first.contribution, expert=first.expert, offset=first.offset, others=tuple(rest)
        )


@dataclass(frozen=True, slots=True, kw_only=True)
class Gap:
    """Elements of a covered tensor that no delta reaches: they should be the base's."""

    start: int
    count: int
    merged_key: str
    merged_start: int


def slices_of(row: PlanRow, pairing: Pairing) -> Iterator[Slice]:
    """Yield the slices of one planned tensor, in the order of its elements.

    An adapter gives a region one delta, one replacement, or both.
    """
    for region in row.regions:
        replacement = region.replacement
        term, *others = region.terms or ((replacement,) if replacement else ())
        for piece in pairing.pieces:
            start, stop = max(region.start, piece.start), min(region.stop, piece.start + piece.count)
            if start >= stop:
                continue
            skipped = (start - region.start) // region.columns
            yield Slice(
                key=row.key,
                source=row.source,
                start=start,
                rows=(stop - start) // region.columns,
                columns=region.columns,
                contribution=term.contribution,
                expert=term.expert,
                offset=term.offset + skipped,
                number=term.expert if term.expert is not None else row.expert,
                merged_key=piece.merged_key,
                merged_start=piece.merged_start + start - piece.start,
                replaced=not region.terms,
                base_replacement=replace(replacement, offset=replacement.offset + skipped)
                if replacement and region.terms
                else None,
                others=tuple(replace(other, offset=other.offset + skipped) for other in others),
            )


def gaps_of(row: PlanRow, pairing: Pairing) -> Iterator[Gap]:
    """Yield the runs of a planned tensor that no region covers."""
    for piece in pairing.pieces:
        position, stop = piece.start, piece.start + piece.count
        for region in row.regions:
            if region.stop <= position or region.start >= stop:
                continue
            if position < region.start:
                yield _gap(piece.merged_key, piece.merged_start - piece.start, position, region.start)
            position = region.stop
        if position < stop:
            yield _gap(piece.merged_key, piece.merged_start - piece.start, position, stop)


def _gap(merged_key: str, shift: int, start: int, stop: int) -> Gap:
    return Gap(start=start, count=stop - start, merged_key=merged_key, merged_start=start + shift)


class Siblings:
    """Slices by what they have in common, for the question whose delta a slice holds."""

    def __init__(self, plan: MergePlan, slices: Iterable[Slice]) -> None:
        self._plan = plan
        self._groups: dict[Group, dict[int, Slice]] = defaultdict(dict)
        for item in slices:
            if item.number is not None and not item.replaced and (group := self.group(item)) is not None:
                self._groups[group][item.number] = item

    def group(self, item: Slice) -> Group | None:
        """Return what a slice has in common with its siblings, None where it can have none."""
        if item.expert is not None:
            return (item.contribution, item.offset, item.rows)
        named = self._single(item)
        return (named[0], named[2], item.rows) if named else None

    def _single(self, item: Slice) -> tuple[str, int, str] | None:
        """Return (experts path, expert, leaf) of a slice of the pair of one expert's Linear; a bias has no siblings."""
        contribution = self._plan.contributions[item.contribution]
        return expert_module(common(contribution.module)) if isinstance(contribution, PairContribution) else None

    def of(self, item: Slice) -> Mapping[int, Slice]:
        """Return the same part of every expert of the layer, by expert: the slice's own too."""
        group = self.group(item)
        return self._groups.get(group, {}) if group is not None else {}

    def other_half(self, item: Slice) -> Slice | None:
        """Return the up_proj of a gate_proj that has a LoRA of its own, and the reverse."""
        named = self._single(item)
        leaf = {"gate_proj": "up_proj", "up_proj": "gate_proj"}.get(named[2]) if named else None
        if named is None or leaf is None or item.expert is not None:
            return None
        return self._groups.get((named[0], leaf, item.rows), {}).get(named[1])
