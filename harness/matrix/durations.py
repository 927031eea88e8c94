"""How long cells will take, from how long they took. Pure."""

from __future__ import annotations

import statistics
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.matrix.cell import Cell

Basis = Literal["recorded", "similar"]


@dataclass(frozen=True, kw_only=True)
class Duration:
    """How long a cell is expected to take, in seconds.

    ``basis`` says whether that is its own last time (``recorded``) or the median of the same cell on other stacks
    (``similar``).
    """

    seconds: float
    basis: Basis


def expected_durations(cells: Iterable[Cell], recorded: Mapping[str, float]) -> dict[str, Duration]:
    """Return how long cells will take, by id; those of which nothing is known are left out.

    Args:
        cells: the cells.
        recorded: seconds that cells took, by id.
    """
    similar: dict[str, list[float]] = {}
    for cell_id, seconds in recorded.items():
        similar.setdefault(_without_stack(cell_id), []).append(seconds)
    found: dict[str, Duration] = {}
    for cell in cells:
        if cell.id in recorded:
            found[cell.id] = Duration(seconds=recorded[cell.id], basis="recorded")
        elif others := similar.get(_without_stack(cell.id)):
            found[cell.id] = Duration(seconds=statistics.median(others), basis="similar")
    return found


def makespan(seconds: Sequence[float], *, jobs: int) -> float:
    """Return about how long work takes, so many at a time: no less than its longest part."""
    return max([sum(seconds) / jobs, *seconds], default=0.0)


def _without_stack(cell_id: str) -> str:
    """Return ``family/recipe`` and what is not the default, of an id."""
    name, _, rest = cell_id.partition("@")
    return "+".join((name, *rest.split("+")[1:]))
