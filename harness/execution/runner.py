"""What runs one cell: the socket of executors. The scheduler decides which cell is next, a runner does the rest.

Each file under ``harness/execution/executors`` is one way, chosen with ``--executor``. It defines ``runner``, which
makes a ``Runner`` from a ``RunContext``. Where it does not run cells on this machine it also defines ``capacity``,
which says how much there is where it does. The scheduler knows no more of any of them.
"""

from __future__ import annotations

import threading
from collections.abc import Callable, Collection
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from harness.contract.cell_fields import Device
from harness.contract.stages import StageName
from harness.execution.bundle import Bundle
from harness.execution.fingerprint import Fingerprints
from harness.execution.machine import MachineKind
from harness.execution.redact import Redactor
from harness.execution.services import CellSettings, ChildEnvironment, Expected, Prepare, PreparedEnvironment
from harness.execution.store import ResultStore
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult

ProcessOrigin = Literal["warm", "fresh", "started"]
"""Where a cell's process comes from.

It is forked by a warm worker where that can be, or new for each cell. On a GPU there is a new one for each group of its
stages. None of this decides a result, so it is no part of its fingerprint.
"""


@dataclass(frozen=True, kw_only=True)
class RunContext:
    """What a run has, whatever its cells are run by.

    Attributes:
        bundle: the worker's code.
        cache: the harness's cache directory, only to be taken out of texts.
        scratch: where work directories are made.
        store: where logs go.
        prepare: makes environments, where it is called.
        child_environment: gives a child's variables.
        fingerprints: give the keys of cells.
        expected: what a cell is expected to take.
        keep: leave the work directories, as ``<scratch>/<family>/<file stem>``.
        run_token: the label of this run's processes.
        processes: where the process of a cell comes from.
        note: takes a sentence for whoever watches; may be called from any thread.
    """

    bundle: Bundle
    cache: Path
    scratch: Path
    store: ResultStore
    prepare: Prepare
    child_environment: ChildEnvironment
    fingerprints: Fingerprints
    expected: Callable[[Cell], Expected]
    keep: bool
    run_token: str
    processes: ProcessOrigin
    note: Callable[[str], None]

    def redactor(
        self, *, work: Path | None = None, home: Path | None = None, environment: PreparedEnvironment | None = None
    ) -> Redactor:
        """Return what takes this machine out of the texts of a cell's result.

        Args:
            work: the cell's directory.
            home: what its libraries took for the home directory when they were imported, where that is not the cell's
                own.
            environment: where it ran.
        """
        places = {"code": self.bundle.root, "cache": self.cache, "out": self.store.out, "home": Path.home()}
        known = {"work": work, "worker-home": home, "env": environment.prefix if environment is not None else None}
        return Redactor(places | {name: path for name, path in known.items() if path is not None})


@dataclass(frozen=True, kw_only=True)
class Capacity:
    """How much there is where cells run.

    Attributes:
        cores: cores of all machines together.
        cells: how many cells to run at a time where nobody says; None: one for each core.
        memory_mb: MiB that all cells may take together; None where the executor itself sees to that.
    """

    cores: int
    cells: int | None = None
    memory_mb: float | None = None


@dataclass(frozen=True, kw_only=True)
class Ran:
    """What a cell came to, and under which key that is kept (``fingerprint``); None: under none."""

    result: CellResult
    key: str | None


class Runner(Protocol):
    """Runs cells. Its methods may be called from several threads at once."""

    def prepare(self, stack: Stack) -> PreparedEnvironment:
        """Make the environment of a stack where its cells can run, or find it.

        Raises:
            Unresolvable, VersionNotFoundError, EnvironmentFailedError: it cannot be made, see ``services.Prepare``.
        """
        ...

    def machines(self, device: Device) -> Collection[MachineKind]:
        """Return the kinds of machine that a cell may run on: a result kept from any of them may stand for it."""
        ...

    def run(
        self,
        cell: Cell,
        environment: PreparedEnvironment,
        settings: CellSettings,
        *,
        number: int,
        cancelled: threading.Event,
        entered: Callable[[StageName], None],
    ) -> Ran | None:
        """Run one cell; None when it was cancelled.

        Args:
            cell: the cell.
            environment: where it runs.
            settings: limits, bands, threads.
            number: distinguishes it from the other cells of the run.
            cancelled: when set, the cell is killed.
            entered: called with each stage that the worker is seen in.

        Raises:
            EnvironmentFailedError: this machine has no room for it, which is no finding.
        """
        ...

    def release(self, stack: Stack) -> None:
        """No cell of this stack is left: what was kept for them can go. Must not take long."""
        ...

    def close(self) -> None:
        """The run is over, by whatever way: leave nothing behind. No cell is running any more."""
        ...


MakeRunner = Callable[[RunContext], Runner]
