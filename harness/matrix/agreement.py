"""Stacks that load the same base must say the same: what each says is held against what the others say; pure.

It is the one truth of a family whose architecture is not defined here (``harness.definitions``). Where most stacks
agree, those that do not are named. Where no majority does, all are.
"""

from __future__ import annotations

import math
from collections import defaultdict
from collections.abc import Iterable, Mapping, Sequence
from itertools import combinations

from harness.counting import counted
from harness.result import CellResult

FEWEST = 4
"""Positions that two stacks must both be clear at, or nothing is said of them."""


def disagreements(results: Iterable[CellResult], *, band: float) -> Mapping[str, str]:
    """Return what is to be said of cells whose base says other than it does on most stacks: id → sentence.

    One that says what is no finite number is named whatever others say.

    Args:
        results: of one run or of several. Where loading failed, it is known already that the base is not what it was.
        band: how far two log-probabilities may be from each other, nats.
    """
    groups: dict[tuple[object, ...], list[CellResult]] = defaultdict(list)
    found: dict[str, str] = {}
    for result in results:
        loaded = "load" in result.stages and result.stages["load"].result == "pass"
        if not loaded or not result.base_logprobs or result.base_sha256 is None:
            continue
        if no_numbers := sum(said is not None and not math.isfinite(said) for said in result.base_logprobs):
            # No distance to it is larger than a band, and others are not to be held against it.
            found[result.cell_id] = f"what the base model says is no finite number at {counted(no_numbers, 'position')}"
            continue
        groups[result.base_sha256, _codes_of(result), result.seed, result.device].append(result)
    return found | {cell: sentence for group in groups.values() for cell, sentence in _of_group(group, band).items()}


def _codes_of(result: CellResult) -> object:
    """Return what decides how a base is quantised; None where it is not.

    Experts that are a list of Linears are quantised one by one, and their scales in other groups than those of a fused
    parameter: both are right, and not the same.
    """
    if result.quantization is None:
        return None
    return result.cell.recipe, None if result.facts is None else result.facts.fused_experts


def _of_group(results: Sequence[CellResult], band: float) -> dict[str, str]:
    """Name the cells of one base that do not say what most of its stacks say."""
    stacks: dict[str, CellResult] = {}
    for result in results:
        stacks.setdefault(result.cell.stack.id, result)
    largest = max(_parties(stacks, band), key=len)
    majority = largest if 2 * len(largest) > len(stacks) else []
    found = {}
    for result in results:
        others = majority or [name for name in stacks if name != result.cell.stack.id]
        off = max(_distance(result, stacks[name]) for name in others) if others else 0.0
        if off > band and (majority or len(stacks) > 1):
            said = f"by up to {off:.3g} nats, where {band:g} is rounding, from what it says on {', '.join(others)}"
            found[result.cell_id] = f"what the base model says differs {said}"
    return found


def _parties(stacks: Mapping[str, CellResult], band: float) -> list[list[str]]:
    """Return the stacks that agree with each other, directly or through others."""
    parties = [[name] for name in stacks]
    for one, other in combinations(stacks, 2):
        first, second = (next(party for party in parties if name in party) for name in (one, other))
        if first is not second and _distance(stacks[one], stacks[other]) <= band:
            parties.remove(second)
            first += second
    return parties


def _distance(one: CellResult, other: CellResult) -> float:
    """Return the largest difference where both are clear; 0 where that is nearly nowhere, so that nothing is said."""
    both = [
        abs(mine - theirs)
        for mine, theirs in zip(one.base_logprobs, other.base_logprobs, strict=False)
        if mine is not None and theirs is not None
    ]
    return max(both) if len(both) >= FEWEST else 0.0
