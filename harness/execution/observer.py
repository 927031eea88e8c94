"""What the scheduler tells whoever watches. Every call comes from the thread that runs the scheduler, one at a time."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Protocol

from harness.contract.stages import StageName
from harness.errors import HarnessError
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult


@dataclass(frozen=True, kw_only=True)
class RunReport:
    """What a run came to.

    Attributes:
        planned: every cell, in plan order.
        results: those that have a result, in plan order; of an interrupted run not all.
        reused: ids of those that were not run, because their result was kept by an earlier run.
        environment_failures: stacks whose environment could not be made for a reason that is not the stack's own. Their
            cells have the outcome ``error``.
        seconds: wall clock of the run.
        interrupted: whether the run was ended by Ctrl-C or SIGTERM before every cell had its result.
    """

    planned: tuple[Cell, ...]
    results: tuple[CellResult, ...]
    reused: frozenset[str]
    environment_failures: tuple[tuple[Stack, HarnessError], ...]
    seconds: float
    interrupted: bool

    @property
    def unfinished(self) -> tuple[Cell, ...]:
        """Cells without a result."""
        done = {result.cell_id for result in self.results}
        return tuple(cell for cell in self.planned if cell.id not in done)


class Observer(Protocol):
    """Receives the events of a run."""

    def planned(self, cells: Sequence[Cell]) -> None:
        """The run begins; these are its cells."""
        ...

    def environment_started(self, stack: Stack) -> None:
        """The environment of a stack is being made, or found."""
        ...

    def environment_ready(self, stack: Stack, seconds: float) -> None:
        """It is there, after so many seconds."""
        ...

    def environment_failed(self, stack: Stack, reason: str) -> None:
        """It cannot be made: the stack is unresolvable, or something is wrong here."""
        ...

    def cell_started(self, cell: Cell) -> None:
        """A cell's worker has been started."""
        ...

    def cell_stage(self, cell: Cell, stage: StageName) -> None:
        """A cell has been seen in a stage."""
        ...

    def cell_finished(self, result: CellResult, *, reused: bool) -> None:
        """A cell has its result, and it is on disk. With ``reused`` it is one of an earlier run."""
        ...

    def note(self, text: str) -> None:
        """Something that a person may want to know: a warm worker is replaced, or there is none, and why."""
        ...

    def run_ended(self, report: RunReport) -> None:
        """The run is over, interrupted or not, and its children are gone."""
        ...

    def closed(self) -> None:
        """The last call, also when the run ended in an error."""
        ...
