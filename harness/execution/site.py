"""Where a cell of a cluster runs: the part of an executor that is called on a node, in a process of its own.

It is the local runner again, in a process that the cluster starts and may end at any moment. So it has a watchdog of
its own (``deadman``), keeps a warm worker for the stack that it ran last, and makes the environment of a stack when the
first cell of it comes: the cache's guards see to it that this happens once on a node, however many processes ask.

What goes over the network is an order and an answer. Nothing of the driver's machine is in either, nothing of the
node's machine is in the answer, and what decided the result (its key) is what was here.
"""

from __future__ import annotations

import atexit
import contextlib
import secrets
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from harness.contract.stages import StageName
from harness.envs import Unresolvable, cache_dir
from harness.errors import EnvironmentFailedError, HarnessError, VersionNotFoundError
from harness.execution.agenda import StackKey, stack_key
from harness.execution.bundle import publish_bundle
from harness.execution.deadman import Deadman
from harness.execution.executors.local import LocalRunner
from harness.execution.files import read_if_there, writing
from harness.execution.fingerprint import Fingerprints
from harness.execution.runner import ProcessOrigin, RunContext
from harness.execution.scratch import scratch_directory
from harness.execution.services import CellSettings, ChildEnvironment, Expected, Prepare, PreparedEnvironment
from harness.execution.store import ResultStore
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult


@dataclass(frozen=True, kw_only=True)
class Terms:
    """What all cells of a run have in common.

    Attributes:
        prepare: makes environments, where it is called.
        child_environment: gives a child's variables, where it is called.
        processes: where the process of a cell comes from.
        code_sha256: the worker's code, which must be the same here.
        package: the folder of the package ``harness`` to bundle; None for the one that is running here.
    """

    prepare: Prepare
    child_environment: ChildEnvironment
    processes: ProcessOrigin
    code_sha256: str
    package: Path | None = None


@dataclass(frozen=True, kw_only=True)
class Order:
    """One cell to run."""

    cell: Cell
    settings: CellSettings
    terms: Terms


@dataclass(frozen=True, kw_only=True)
class Answer:
    """What a cell came to, its log, the key of its result here, and sentences for whoever watches."""

    result: CellResult
    log: bytes
    key: str | None
    notes: tuple[str, ...]


@dataclass(frozen=True, kw_only=True)
class EnvironmentThere:
    """An environment that is on a node: what the scheduler needs of it (``services.PreparedEnvironment``)."""

    python: Path
    prefix: Path
    lock_sha256: str | None
    identity: str | None
    versions: dict[str, str]
    python_version: str
    seconds_resolve: float | None
    seconds_install: float | None
    note: str | None


@dataclass(frozen=True, kw_only=True)
class Failed:
    """An environment could not be made, in words, because exceptions of ours do not travel."""

    kind: Literal["unresolvable", "version", "environment"]
    message: str
    remedy: str | None

    def error(self) -> Unresolvable | VersionNotFoundError | EnvironmentFailedError:
        """Return the exception that it was."""
        match self.kind:
            case "unresolvable":
                return Unresolvable(self.message)
            case "version":
                return VersionNotFoundError(self.message, remedy=self.remedy)
            case "environment":
                return EnvironmentFailedError(self.message, remedy=self.remedy)


class Site:
    """This process, as a place where cells run, one at a time. It lasts as long as the process."""

    def __init__(self, terms: Terms) -> None:
        """Get everything ready that is the same for all cells.

        Raises:
            EnvironmentFailedError: the code here is not the driver's, or there is no room.
        """
        self._terms = terms
        self._environments: dict[StackKey, PreparedEnvironment] = {}
        self._last: Stack | None = None
        self._notes: list[str] = []
        self._numbers = 0
        with writing("the harness's code", cache_dir()):
            bundle = publish_bundle(cache_dir(), package=terms.package)
        if bundle.sha256 != terms.code_sha256:
            raise EnvironmentFailedError(
                "The code of the harness on this node is not that of the driver.",
                remedy="Install the same version of the harness on both, or start the driver from the one it has.",
            )
        self._stack = contextlib.ExitStack()
        atexit.register(self.close)
        token = secrets.token_hex(16)
        self._stack.enter_context(Deadman(token))
        self.scratch = self._stack.enter_context(scratch_directory())
        self._store = ResultStore(self.scratch / "out")
        self._settings: CellSettings | None = None
        context = RunContext(
            bundle=bundle,
            cache=cache_dir(),
            scratch=self.scratch,
            store=self._store,
            prepare=terms.prepare,
            child_environment=terms.child_environment,
            fingerprints=Fingerprints(
                code_sha256=bundle.sha256, settings=self._settings_of, child_environment=terms.child_environment
            ),
            expected=lambda _: Expected(),
            keep=False,
            run_token=token,
            processes=terms.processes,
            note=self._notes.append,
        )
        self._runner = LocalRunner(context)
        self._stack.callback(self._runner.close)

    def close(self) -> None:
        """End what is kept warm, and leave nothing behind."""
        self._stack.close()

    def _settings_of(self, cell: Cell) -> CellSettings:
        if self._settings is None:
            raise ValueError(f"{cell.id} is asked about before it runs")
        return self._settings

    def prepare(self, stack: Stack) -> PreparedEnvironment:
        """Make the environment of a stack on this node, or find it; this process asks once.

        Raises:
            Unresolvable, VersionNotFoundError, EnvironmentFailedError: it cannot be made.
        """
        key = stack_key(stack)
        if key not in self._environments:
            self._environments[key] = self._terms.prepare(stack)
        return self._environments[key]

    def run(self, order: Order, entered: Callable[[StageName], None]) -> Answer:
        """Run a cell. ``entered`` is called with each stage that it is seen in.

        Raises:
            Unresolvable, VersionNotFoundError, EnvironmentFailedError: its environment cannot be made here, or there is
                no room for it.
        """
        cell = order.cell
        environment = self.prepare(cell.stack)
        if self._last is not None and self._last != cell.stack:
            self._runner.release(self._last)  # what is kept warm for it takes half a gigabyte
        self._last, self._settings = cell.stack, order.settings
        self._numbers += 1
        ran = self._runner.run(
            cell, environment, order.settings, number=self._numbers, cancelled=threading.Event(), entered=entered
        )
        if ran is None:
            raise ValueError("a cell was cancelled that nobody could cancel")
        log = self._store.running_log_path(cell)
        content = read_if_there(log) or b""
        log.unlink(missing_ok=True)
        notes = tuple(self._notes)
        self._notes.clear()
        return Answer(result=ran.result, log=content, key=ran.key, notes=notes)


_here: Site | None = None


def _site(terms: Terms) -> Site:
    global _here  # noqa: PLW0603  # one for the process, which its cells have in common
    if _here is None:
        _here = Site(terms)
    return _here


def run_here(order: Order, entered: Callable[[StageName], None]) -> Answer | Failed:
    """Run a cell in this process's site."""
    try:
        return _site(order.terms).run(order, entered)
    except (Unresolvable, HarnessError) as error:
        return _failed(error)


def prepare_here(stack: Stack, terms: Terms, entered: Callable[[StageName], None]) -> EnvironmentThere | Failed:
    """Make the environment of a stack on the node of this process."""
    del entered
    try:
        made = _site(terms).prepare(stack)
    except (Unresolvable, HarnessError) as error:
        return _failed(error)
    return EnvironmentThere(
        python=made.python,
        prefix=made.prefix,
        lock_sha256=made.lock_sha256,
        identity=made.identity,
        versions=dict(made.versions),
        python_version=made.python_version,
        seconds_resolve=made.seconds_resolve,
        seconds_install=made.seconds_install,
        note=made.note,
    )


def _failed(error: Unresolvable | HarnessError) -> Failed:
    """Return what goes back. Whatever is neither the stack's nor the user's versions is this node's."""
    match error:
        case Unresolvable():
            return Failed(kind="unresolvable", message=error.explanation, remedy=None)
        case VersionNotFoundError():
            return Failed(kind="version", message=error.message, remedy=error.remedy)
        case _:
            return Failed(kind="environment", message=error.message, remedy=error.remedy)
