"""From what each tensor of an adapter covers to regions that do not overlap.

A claim says that rows of an output tensor are replaced by, or increased by, rows of something of an adapter. What may
meet is little: deltas of different adapters add up; a whole tensor may lie below the deltas of its own module (PEFT
saves a resized embedding so) and below trained tokens. Anything else is two things that both want to be the weight, and
refused.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from itertools import pairwise
from typing import Literal

from harness.merge.errors import MalformedAdapterError, UnsupportedAdapterError
from harness.merge.plan.merge_plan import Contribution, PairContribution, Region, Term

Action = Literal["add", "replace", "replace_below", "replace_tokens"]
"""What a claim does to its rows.

``replace`` stands alone. Deltas and trained tokens may go on top of ``replace_below``. ``replace_tokens`` takes the
place of whatever is below.
"""


@dataclass(frozen=True, slots=True, kw_only=True)
class Claim:
    """Rows of the output tensor ``key`` that ``term`` adds to or replaces.

    ``start`` is an element, ``columns`` the row's length.
    """

    key: str
    start: int
    rows: int
    columns: int
    term: Term
    action: Action

    @property
    def stop(self) -> int:
        """The element after the last."""
        return self.start + self.rows * self.columns


def _region(claims: Sequence[Claim], start: int, stop: int, contributions: Sequence[Contribution]) -> Region:
    """Return the region ``[start, stop)``, which every one of the claims covers whole."""
    columns = claims[0].columns
    at = {
        claim: Term(
            contribution=claim.term.contribution,
            expert=claim.term.expert,
            offset=claim.term.offset + (start - claim.start) // columns,
        )
        for claim in claims
    }
    added = [claim for claim in claims if claim.action == "add"]
    replaced = sorted(
        (claim for claim in claims if claim.action != "add"), key=lambda claim: claim.action == "replace_tokens"
    )
    actions = [claim.action for claim in replaced]
    together: tuple[list[Action], ...] = (
        [],
        ["replace"],
        ["replace_below"],
        ["replace_tokens"],
        ["replace_below", "replace_tokens"],
    )
    if actions not in together or (added and actions not in ([], ["replace_below"])):
        _refuse(claims, contributions)
    if len(added) > 1 and any(
        isinstance(contribution := contributions[claim.term.contribution], PairContribution) and contribution.magnitude
        for claim in added
    ):
        _refuse(added, contributions)
    if replaced and len({contributions[claim.term.contribution].adapter for claim in claims}) > 1:
        _refuse(claims, contributions)
    sources = [contributions[claim.term.contribution].adapter for claim in added]
    if len(set(sources)) != len(sources):
        _refuse(added, contributions)
    return Region(
        start=start,
        rows=(stop - start) // columns,
        columns=columns,
        terms=tuple(at[claim] for claim in added),
        replacement=at[replaced[-1]] if replaced else None,
    )


def _alone(claim: Claim) -> Region:
    """Return the region of a claim that meets no other."""
    added = claim.action == "add"
    return Region(
        start=claim.start,
        rows=claim.rows,
        columns=claim.columns,
        terms=(claim.term,) if added else (),
        replacement=None if added else claim.term,
    )


def _refuse(claims: Sequence[Claim], contributions: Sequence[Contribution]) -> None:
    adapters = {contributions[claim.term.contribution].adapter for claim in claims}
    if len(adapters) > 1:
        raise UnsupportedAdapterError(
            f"two adapters cover {claims[0].key}, and not both with plain LoRA: which goes first would matter.",
            "Merge them one after the other.",
        )
    claimed = " and ".join(contributions[claim.term.contribution].module for claim in claims[:2])
    if all(claim.action == "add" for claim in claims):
        raise MalformedAdapterError(f"two lora pairs cover the same part of {claims[0].key}: {claimed}.")
    raise MalformedAdapterError(f"{claimed} both replace or change the same part of {claims[0].key}.")


def regions_of(claims: Sequence[Claim], contributions: Sequence[Contribution]) -> tuple[Region, ...]:
    """Return the regions of one output tensor, in order.

    Raises:
        MalformedAdapterError: parts of one adapter that cannot both cover the same rows do.
        UnsupportedAdapterError: parts of two adapters that do not add up cover the same rows.
    """
    ordered = sorted(claims, key=lambda claim: claim.start)
    if all(before.stop <= after.start for before, after in pairwise(ordered)):
        return tuple(_alone(claim) for claim in ordered)
    if len({claim.columns for claim in ordered}) > 1:
        _refuse(ordered, contributions)
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
            regions.append(_region(active, start, stop, contributions))
    return tuple(regions)
