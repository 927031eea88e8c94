"""What cells cost, in time and memory, from what they and their like have cost. Pure, the published file apart.

``published-costs.json`` beside this file is generated from the published reports (``harness.matrix.published``). It is
part of the program, so every machine has the same one: shards are balanced by it, and by nothing that one machine
knows and another does not.
"""

from __future__ import annotations

import json
import statistics
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from functools import cache
from pathlib import Path

from harness.matrix.cell import Cell

PUBLISHED = Path(__file__).with_name("published-costs.json")


@dataclass(frozen=True, kw_only=True)
class Cost:
    """What a cell takes on one machine.

    Attributes:
        seconds: wall clock, its environment not counted.
        memory_mb: the largest resident set of any of its processes, in MiB, which a result calls ``peak_rss_mb``.
    """

    seconds: float
    memory_mb: float


UNKNOWN = Cost(seconds=60, memory_mb=2048)
"""What a cell counts as of which nothing is known, nor of any other cell."""


class Costs:
    """What is known of cells, by their ids, and what follows for those that never ran.

    A cell costs what it cost. Else it costs the median of the same cell on other stacks, else that of its recipe in its
    geometry on its device, else that of all cells, else ``UNKNOWN``.
    """

    def __init__(self, recorded: Mapping[str, Cost]) -> None:
        self._recorded = dict(recorded)
        self._alike: dict[str, Cost] = {}
        groups: dict[str, list[Cost]] = {}
        for cell_id, cost in recorded.items():
            for name in _levels(cell_id):
                groups.setdefault(name, []).append(cost)
        self._alike = {name: _median(costs) for name, costs in groups.items()}

    def of(self, cell: Cell) -> Cost:
        """Return what a cell is expected to cost."""
        if cell.id in self._recorded:
            return self._recorded[cell.id]
        return next((self._alike[name] for name in _levels(cell.id) if name in self._alike), UNKNOWN)

    def updated(self, recorded: Mapping[str, Cost]) -> Costs:
        """Return these costs with others in the place of what is known of the same cells."""
        return Costs({**self._recorded, **recorded})


@cache
def published_costs() -> Costs:
    """Return the costs that are part of the program."""
    entries = json.loads(PUBLISHED.read_text(encoding="utf-8"))
    return Costs({name: Cost(seconds=seconds, memory_mb=mb) for name, (seconds, mb) in entries.items()})


def published_seconds(cell: Cell) -> float:
    """Return how long a cell takes by the published costs: the same on every machine."""
    return published_costs().of(cell).seconds


Seconds = Callable[[Cell], float]
"""How long a cell takes."""


def _median(costs: Iterable[Cost]) -> Cost:
    costs = list(costs)
    return Cost(
        seconds=statistics.median(cost.seconds for cost in costs),
        memory_mb=statistics.median(cost.memory_mb for cost in costs),
    )


def _levels(cell_id: str) -> tuple[str, ...]:
    """Return what a cell has in common with others, from the nearest to the most remote.

    These are the cell without its stack, its recipe, geometry and device, and nothing.
    """
    name, _, rest = cell_id.partition("@")
    options = rest.split("+")[1:]
    recipe = name.partition("/")[2]
    kept = [option for option in options if option.partition("=")[0] in {"geometry", "device"}]
    return ("+".join((name, *options)), "+".join((f"*/{recipe}", *kept)), "*")
