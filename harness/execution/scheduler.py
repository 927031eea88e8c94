"""All cells of a run: environments made in the background, cells started as soon as theirs is there.

``jobs`` cells run at a time, or fewer where memory is short (``room``). The longest goes first (``agenda``). The
calling thread does all the deciding and all the talking: it starts cells, notices ends, and calls the observer. A few
threads make environments, and ``jobs`` threads each wait for one cell. What runs a cell, and where, only its ``Runner``
knows. A cell's result is on disk before anybody hears of it. What goes wrong in a cell is its outcome. What goes wrong
with an environment is the outcome of its cells. The others go on either way. Anything else that goes wrong ends the
run, with no child left behind.

A cell whose result was kept by an earlier run is not run (``result_cache``). Where the locks of environments are known
that is settled before any environment is made, so that a stack of which everything is kept needs none.
"""

from __future__ import annotations

import secrets
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from concurrent.futures import FIRST_COMPLETED, Future, ThreadPoolExecutor, wait
from queue import Empty, SimpleQueue
from typing import Any

from harness.contract.outcomes import Outcome
from harness.contract.stages import StageName
from harness.envs import Unresolvable
from harness.errors import (
    EnvironmentFailedError,
    HarnessError,
    InterruptedByUserError,
    NothingSelectedError,
    VersionNotFoundError,
)
from harness.execution.agenda import Agenda, StackKey, stack_key
from harness.execution.bundle import publish_bundle
from harness.execution.deadman import Deadman
from harness.execution.executors import local
from harness.execution.files import read_if_there
from harness.execution.finalise import StackRecord, without_worker
from harness.execution.fingerprint import Fingerprints
from harness.execution.interrupt import children, end_children, signals_set
from harness.execution.observer import Observer, RunReport
from harness.execution.room import Room
from harness.execution.runner import MakeRunner, ProcessOrigin, RunContext
from harness.execution.services import PreparedEnvironment, Services
from harness.execution.store import ResultStore
from harness.execution.times import utc_now
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult

_TICK = 0.1


class RunInterruptedError(InterruptedByUserError):
    """Ctrl-C or SIGTERM. Children are gone; ``report`` holds what was finished, and is on disk."""

    def __init__(self, report: RunReport) -> None:
        super().__init__(f"Interrupted: {_kept(len(report.results), len(report.planned))}.")
        self.report = report


def _kept(done: int, planned: int) -> str:
    """Say how many of the planned cells have a result: of one that was interrupted none has."""
    if not done:
        return "the cell has no result" if planned == 1 else f"none of {planned} cells has a result"
    return f"{done} of {planned} cells {'has a result, which is' if done == 1 else 'have results, which are'} kept"


def run_cells(
    cells: Sequence[Cell],
    services: Services,
    observer: Observer,
    *,
    jobs: int = 1,
    environment_jobs: int = 1,
    memory_mb: float | None = None,
    keep: bool = False,
    make_runner: MakeRunner = local.runner,
    processes: ProcessOrigin = "warm",
    cancelled: threading.Event | None = None,
) -> RunReport:
    """Run ``cells`` and return what they came to.

    Args:
        cells: the plan.
        services: what is needed of others.
        observer: is told what happens.
        jobs: how many cells run at a time.
        environment_jobs: how many environments are made at a time.
        memory_mb: MiB that all cells that run may take together; None: that is not looked at.
        keep: leave the cells' work directories.
        make_runner: makes what runs the cells, see ``executors``.
        processes: where the process of a cell comes from.
        cancelled: set from elsewhere, it ends the run as Ctrl-C does.

    Raises:
        NothingSelectedError: there are no cells.
        RunInterruptedError: the run was cancelled.
    """
    if not cells:
        raise NothingSelectedError("There is no cell to run.")
    if jobs < 1 or environment_jobs < 1:
        raise ValueError(f"jobs={jobs} and environment_jobs={environment_jobs} must be at least 1")
    event = cancelled or threading.Event()
    run = _Run(
        cells,
        services,
        observer,
        room=Room(cells=jobs, memory_mb=memory_mb),
        keep=keep,
        make_runner=make_runner,
        processes=processes,
        cancelled=event,
    )
    with signals_set(event):
        try:
            report = run.execute(environment_jobs=environment_jobs)
            observer.run_ended(report)
        finally:
            observer.closed()
    if report.interrupted:
        raise RunInterruptedError(report)
    return report


class _Run:
    """One run's state. Only the calling thread touches it, the event and the queue excepted."""

    def __init__(
        self,
        cells: Sequence[Cell],
        services: Services,
        observer: Observer,
        *,
        room: Room,
        keep: bool,
        make_runner: MakeRunner,
        processes: ProcessOrigin,
        cancelled: threading.Event,
    ) -> None:
        self.cells = tuple(cells)
        self.room = room
        self.services = services
        self.observer = observer
        self.cancelled = cancelled
        self.agenda = Agenda(cells, open_stacks=room.cells, urgent=services.urgent)
        self.left = Counter(stack_key(cell.stack) for cell in cells)
        self.notices: SimpleQueue[Callable[[], None]] = SimpleQueue()
        self.store = ResultStore(services.out)
        bundle = publish_bundle(services.cache, package=services.package)
        self.fingerprints = Fingerprints(
            code_sha256=bundle.sha256,
            settings=services.settings,
            child_environment=services.child_environment,
        )
        self.context = RunContext(
            bundle=bundle,
            cache=services.cache,
            scratch=services.scratch,
            store=self.store,
            prepare=services.prepare,
            child_environment=services.child_environment,
            fingerprints=self.fingerprints,
            expected=services.expected,
            keep=keep,
            run_token=secrets.token_hex(16),
            processes=processes,
            note=lambda text: self.notices.put(lambda: self.observer.note(text)),
        )
        self.runner = make_runner(self.context)
        self.looked_up: dict[str, set[str]] = {}
        self.environments: dict[StackKey, PreparedEnvironment] = {}
        self.results: dict[str, CellResult] = {}
        self.reused: set[str] = set()
        self.failures: list[tuple[Stack, HarnessError]] = []
        self.started = 0

    def execute(self, *, environment_jobs: int) -> RunReport:
        """Run everything, or until cancelled."""
        began = time.monotonic()
        self.observer.planned(self.cells)
        self._reuse_what_is_known()
        if self.agenda.stacks:
            self.agenda.weigh(lambda cell: self.services.expected(cell).seconds)
        self.store.plan(cell for cell in self.cells if cell.id not in self.results)
        preparing: dict[Future[tuple[PreparedEnvironment, float]], StackKey] = {}
        running: dict[Future[CellResult | None], Cell] = {}
        with Deadman(self.context.run_token):
            spared = children()
            makers = ThreadPoolExecutor(environment_jobs, thread_name_prefix="environment")
            cell_threads = ThreadPoolExecutor(self.room.cells, thread_name_prefix="cell")
            completed = False
            try:
                # Those that are there first: finding one takes no time, and cells can begin.
                stacks = self.agenda.stacks
                for key, stack in sorted(stacks.items(), key=lambda item: item[0] not in self.services.there):
                    preparing[makers.submit(self._prepare, stack)] = key
                while not self.cancelled.is_set():
                    self._start_cells(cell_threads, running)
                    if not running and not preparing:
                        break
                    # The two give different things; here it only matters that one has ended.
                    pending: list[Future[Any]] = [*preparing, *running]
                    done, _ = wait(pending, timeout=_TICK, return_when=FIRST_COMPLETED)
                    if not self.cancelled.is_set():  # Ctrl-C reaches uv too: that it fails then says nothing
                        self._collect(done, preparing, running)
                completed = True
            finally:
                cancelled = self.cancelled.is_set()
                if not completed:
                    self.cancelled.set()  # an error of ours: end the children, then let it out
                # Cells first: they end at once. Afterwards every other child belongs to the making of environments.
                cell_threads.shutdown(wait=True, cancel_futures=True)
                self.runner.close()
                makers.shutdown(wait=False, cancel_futures=True)
                end_children(spared, until=lambda: all(future.done() for future in preparing))
            # Cells that ended in the same moment as the run have their result; it counts.
            self._collect({future for future in running if not future.cancelled()}, {}, running)
            if self.started and self.services.results is not None:
                self.services.results.make_room(warn=self.observer.note)
        return RunReport(
            planned=self.cells,
            results=tuple(self.results[cell.id] for cell in self.cells if cell.id in self.results),
            reused=frozenset(self.reused),
            environment_failures=tuple(self.failures),
            seconds=time.monotonic() - began,
            interrupted=cancelled and len(self.results) < len(self.cells),
        )

    def _prepare(self, stack: Stack) -> tuple[PreparedEnvironment, float]:
        """Make an environment; runs in a thread of its own."""
        self.notices.put(lambda: self.observer.environment_started(stack))
        began = time.monotonic()
        return self.runner.prepare(stack), time.monotonic() - began

    def _reuse_what_is_known(self) -> None:
        """Finish the cells whose results are kept, as far as it is known beforehand what decides them."""
        for cell in self.cells:
            identity = self.services.identities.get(stack_key(cell.stack))
            if identity is not None and not self.cancelled.is_set():
                self._reuse(cell, identity)
        self.agenda.remove(self.results.keys())

    def _reuse(self, cell: Cell, identity: str | None) -> bool:
        """Finish a cell whose result is kept; say whether it is. Nothing is looked up twice.

        Args:
            cell: the cell.
            identity: what its environment holds, as far as it is known.
        """
        services = self.services
        if services.results is None or services.reuse is None or not services.reuse(cell):
            return False
        known = self.looked_up.setdefault(cell.id, set())
        for machine in self.runner.machines(cell.device):
            key = self.fingerprints.of(cell, identity, machine)
            if key is None or key in known:
                continue
            known.add(key)
            kept = services.results.find(cell, key, warn=self.observer.note)
            if kept is not None:
                self.reused.add(cell.id)
                self._finish(self.store.take_over(kept, reused=utc_now()))
                return True
        return False

    def _start_cells(self, threads: ThreadPoolExecutor, running: dict[Future[CellResult | None], Cell]) -> None:
        """Start cells while there is room, other than those whose results are kept."""

        def fits(cell: Cell) -> bool:
            taken = [self.services.expected(other).memory_mb for other in running.values()]
            return self.room.fits(self.services.expected(cell).memory_mb, taken)

        while len(running) < self.room.cells and not self.cancelled.is_set():
            cell = self.agenda.next(fits)
            if cell is None:
                return
            environment = self.environments[stack_key(cell.stack)]
            if self._reuse(cell, environment.identity):
                continue
            self.started += 1
            self.observer.cell_started(cell)
            future = threads.submit(self._run_cell, cell, environment, self.started)
            running[future] = cell

    def _run_cell(self, cell: Cell, environment: PreparedEnvironment, number: int) -> CellResult | None:
        """Run a cell, store its result and keep it for later runs; runs in a thread of its own."""
        ran = self.runner.run(
            cell,
            environment,
            self.services.settings(cell),
            number=number,
            cancelled=self.cancelled,
            entered=lambda stage: self.notices.put(lambda: self.observer.cell_stage(cell, stage)),
        )
        if ran is None:
            return None
        result = self.store.with_history(ran.result)
        self.store.save(result)
        if self.services.results is not None:
            log = b"" if result.log is None else read_if_there(self.store.log_path(cell))
            self.services.results.keep(result, ran.key, log=log, warn=self.context.note)
        return result

    def _collect(
        self,
        done: set[Future[Any]],
        preparing: dict[Future[tuple[PreparedEnvironment, float]], StackKey],
        running: dict[Future[CellResult | None], Cell],
    ) -> None:
        """Pass on what threads have to say, then take in what has ended.

        What ended in an unforeseen error raises it here.
        """
        while True:
            try:
                self.notices.get_nowait()()
            except Empty:
                break
        for future in [future for future in preparing if future in done]:
            self._environment(preparing.pop(future), future)
        for ended in [future for future in running if future in done]:
            cell = running.pop(ended)
            try:
                result = ended.result()
            except EnvironmentFailedError as error:
                self.failures.append((cell.stack, error))
                self._finish_without_worker(cell, outcome="environment", stage="import", reason=error.message)
            else:
                if result is not None:
                    self._finish(result)

    def _environment(self, key: StackKey, future: Future[tuple[PreparedEnvironment, float]]) -> None:
        """An environment is there, or will not be: then that is the outcome of its cells."""
        stack = self.agenda.stacks[key]
        try:
            environment, seconds = future.result()
        except Unresolvable as error:
            self._fail_stack(key, outcome="unresolvable", stage="resolve", reason=error.explanation)
        except VersionNotFoundError as error:
            self.failures.append((stack, error))
            self._fail_stack(key, outcome="unresolvable", stage="resolve", reason=error.message)
        except EnvironmentFailedError as error:
            self.failures.append((stack, error))
            self._fail_stack(key, outcome="environment", stage="install", reason=error.message)
        else:
            self.environments[key] = environment
            self.agenda.ready(key)
            self.observer.environment_ready(stack, seconds)
            if environment.note is not None:
                self.observer.note(environment.note)

    def _fail_stack(self, key: StackKey, *, outcome: Outcome, stage: StageName, reason: str) -> None:
        """Give every cell of a stack the outcome of its environment. It is not kept, because indexes change."""
        self.observer.environment_failed(self.agenda.stacks[key], reason)
        for cell in self.agenda.drop(key):
            self._finish_without_worker(cell, outcome=outcome, stage=stage, reason=reason)

    def _finish_without_worker(self, cell: Cell, *, outcome: Outcome, stage: StageName, reason: str) -> None:
        result = without_worker(
            cell,
            outcome=outcome,
            stage=stage,
            reason=reason,
            stack=StackRecord(),
            redactor=self.context.redactor(),
            started=utc_now(),
        )
        result = self.store.with_history(result)
        self.store.save(result)
        self._finish(result)

    def _finish(self, result: CellResult) -> None:
        self.results[result.cell_id] = result
        self.store.finish(result.cell)
        self.observer.cell_finished(result, reused=result.cell_id in self.reused)
        key = stack_key(result.cell.stack)
        self.left[key] -= 1
        if not self.left[key]:
            self.runner.release(result.cell.stack)
