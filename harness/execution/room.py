"""How many cells there is room for at a time: cores are divided, and memory is."""

from __future__ import annotations

from collections.abc import Collection
from dataclasses import dataclass

PROCESSES = 2
"""Processes of a cell that count as large as its largest, which is what is recorded.

A cell merges and reloads in processes of their own, and the one that trained waits for them. Pages that they share are
counted twice, so the libraries of a stack's warm worker are in it too.
"""

SHARE = 0.9
"""Of the memory that is available when a run begins, what is given to cells. The rest is the harness's and the
machine's own."""


@dataclass(frozen=True, kw_only=True)
class Room:
    """What there is on the machine or the machines that cells run on.

    Attributes:
        cells: how many may run at a time, by cores and by what the user wants.
        memory_mb: MiB that they may take together; None where that is not looked at here.
    """

    cells: int
    memory_mb: float | None = None

    def fits(self, wanted_mb: float, running_mb: Collection[float]) -> bool:
        """Say whether another cell may start.

        One may always run alone: what it really takes is limited for each cell by itself.

        Args:
            wanted_mb: what its largest process is expected to take.
            running_mb: the same of each cell that runs.
        """
        if not running_mb:
            return True
        if len(running_mb) >= self.cells:
            return False
        taken = (sum(running_mb) + wanted_mb) * PROCESSES
        return self.memory_mb is None or taken <= self.memory_mb * SHARE
