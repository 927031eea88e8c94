"""What runs one cell: the socket of executors. The scheduler decides which cell is next, a runner does the rest.

Each file under ``harness/execution/executors`` is one way, chosen with ``--executor``. It defines ``runner``, which
makes a ``Runner`` from a ``RunContext``.
"""

from __future__ import annotations

import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal, Protocol

from harness.contract.stages import StageName
from harness.execution.bundle import Bundle
from harness.execution.redact import Redactor
from harness.execution.services import CellSettings, ChildEnvironment, PreparedEnvironment
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
        child_environment: gives a child's variables.
        keep: leave the work directories, as ``<scratch>/<family>/<file stem>``.
        run_token: the label of this run's processes.
        processes: where the process of a cell comes from.
        note: takes a sentence for whoever watches; may be called from any thread.
    """

    bundle: Bundle
    cache: Path
    scratch: Path
    store: ResultStore
    child_environment: ChildEnvironment
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


class Runner(Protocol):
    """Runs cells. Its methods may be called from several threads at once."""

    def run(
        self,
        cell: Cell,
        environment: PreparedEnvironment,
        settings: CellSettings,
        *,
        number: int,
        cancelled: threading.Event,
        entered: Callable[[StageName], None],
    ) -> CellResult | None:
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
