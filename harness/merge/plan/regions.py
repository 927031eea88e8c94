"""From what each tensor of an adapter covers to regions that do not overlap.

A claim says that rows of an output tensor are replaced by, or increased by, rows of something of an adapter. What may meet is little: deltas of
different adapters add up; a whole tensor may lie below the deltas of its own module (PEFT saves a resized embedding so) and below
trained tokens. Anything else is two things that both want to be the weight, and refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from harness.merge.errors import MalformedAdapterError, UnsupportedAdapterError
from harness.merge.plan.merge_plan import PairUse, Region, Term, Use

Effect = Literal["add", "full", "below", "tokens"]
"""``full``: replaces and stands alone; ``below``: replaces, and deltas or tokens may go on top; ``tokens``: replaces what is below."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Rows of the output tensor ``key`` that ``term`` adds to or replaces; ``start`` is an element, ``columns`` the row's length."""

    key: str
    start: int
    rows: int
    columns: int
    term: Term
    effect: Effect

    @property
    def stop(self) -> int:
        """The element after the last."""
        return self.start + self.rows * self.columns


def _region(claims: Sequence[Claim], start: int, stop: int, uses: Sequence[Use]) -> Region:
    """Return the region ``[start, stop)``, which every one of the claims covers whole."""
    columns = claims[0].columns
    at = {
        claim: Term(
            use=claim.term.use, expert=claim.term.expert, offset=claim.term.offset + (start - claim.start) // columns
        )
        for claim in claims
    }
    added = [claim for claim in claims if claim.effect == "add"]
    replaced = sorted((claim for claim in claims if claim.effect != "add"), key=lambda claim: claim.effect == "tokens")
    effects = [claim.effect for claim in replaced]
    if effects not in ([], ["full"], ["below"], ["tokens"], ["below", "tokens"]) or (
        added and effects not in ([], ["below"])
    ):
        _refuse(claims, uses)
    if len(added) > 1 and any(isinstance(use := uses[claim.term.use], PairUse) and use.magnitude for claim in added):
        _refuse(added, uses)
    if replaced and len({uses[claim.term.use].adapter for claim in claims}) > 1:
        _refuse(claims, uses)
    sources = [uses[claim.term.use].adapter for claim in added]
    if len(set(sources)) != len(sources):
        _refuse(added, uses)
    return Region(
        start=start,
        rows=(stop - start) // columns,
        columns=columns,
        terms=tuple(at[claim] for claim in added),
        replacement=at[replaced[-1]] if replaced else None,
    )


def _alone(claim: Claim) -> Region:
    """Return the region of a claim that meets no other."""
    added = claim.effect == "add"
    return Region(
        start=claim.start,
        rows=claim.rows,
        columns=claim.columns,
        terms=(claim.term,) if added else (),
        replacement=None if added else claim.term,
    )


def _refuse(claims: Sequence[Claim], uses: Sequence[Use]) -> None:
    adapters = {uses[claim.term.use].adapter for claim in claims}
    if len(adapters) > 1:
        raise UnsupportedAdapterError(
            f"two adapters cover {claims[0].key}, and not both with plain LoRA: which goes first would matter.",
            "Merge them one after the other.",
        )
    claimed = " and ".join(uses[claim.term.use].module for claim in claims[:2])
    if all(claim.effect == "add" for claim in claims):
        raise MalformedAdapterError(f"two lora pairs cover the same part of {claims[0].key}: {claimed}.")
    raise MalformedAdapterError(f"{claimed} both replace or change the same part of {claims[0].key}.")


def regions_of(claims: Sequence[Claim], uses: Sequence[Use]) -> tuple[Region, ...]:
    """Return the regions of one output tensor, in order.

    Raises:
        MalformedAdapterError: parts of one adapter that cannot both cover the same rows do.
        UnsupportedAdapterError: parts of two adapters that do not add up cover the same rows.
    """
    ordered = sorted(claims, key=lambda claim: claim.start)
    if all(before.stop <= after.start for before, after in pairwise(ordered)):
        return tuple(_alone(claim) for claim in ordered)
    if len({claim.columns for claim in ordered}) > 1:
        _refuse(ordered, uses)
    cuts = sorted({edge for claim in ordered for edge in (claim.start, claim.stop)})
    regions: list[Region] = []
    active: list[Claim] = []
    position = 0
    for start, stop in pairwise(cuts):
        while position < len(ordered) and ordered[position].start <= start:
            active.append(ordered[position])
            position += 1
        active = [claim for claim in active if claim.stop > start]
        if active:
            regions.append(_region(active, start, stop, uses))
    return tuple(regions)
