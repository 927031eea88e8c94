"""Cells as processes of this machine: for each a work directory, a request, a supervised worker, a result.

A cell's process is forked by the stack's warm worker. Where there is none it is started anew, and says itself whether
its stages can be forked. Where a warm worker has found that nothing can be forked after the imports, that is known.
Then the process need not import to find out.

A cell whose warm worker dies is killed with it and run again: what it had come to by then is nobody's finding. So is a
cell that may have found what a neighbour kept in the home directory of their worker. After the second time it gets a
process of its own, so that a cell which kills its worker ends as what it is.
"""

from __future__ import annotations

import hashlib
import itertools
import os
import shlex
import shutil
import tempfile
import threading
import time
from collections.abc import Callable, Collection
from dataclasses import dataclass, replace
from pathlib import Path
from typing import BinaryIO

from harness.contract.cell_fields import Device
from harness.contract.stages import StageName
from harness.execution.agenda import stack_key
from harness.execution.child import Child, ParentLostError, Started
from harness.execution.deadman import TOKEN
from harness.execution.files import read_if_there, tail, writing
from harness.execution.finalise import StackRecord, finalise
from harness.execution.machine import MachineKind, machine_kind
from harness.execution.memory import available_mb
from harness.execution.observation import parse_observation
from harness.execution.request import WorkerRequest
from harness.execution.runner import Capacity, Ran, RunContext
from harness.execution.services import CellSettings, PreparedEnvironment
from harness.execution.stage_watch import StageWatch
from harness.execution.supervise import SupervisedExit, run_supervised
from harness.execution.times import utc_now
from harness.execution.warm.home import Home
from harness.execution.warm.pool import CancelledError, NoWorkerError, WarmPool, WorkerKey
from harness.execution.warm.worker import Patience, RefusalKind, WarmWorker, WorkerSpec
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult

WARM_ATTEMPTS = 2
"""So many warm workers may be lost to a cell."""

GPU_CELL_PROCESSES = 4
"""Processes that a cell on a GPU has at once where none can be forked.

Each wants a core, and holds some memory of the GPU.
"""

UNFORKABLE: frozenset[RefusalKind] = frozenset({"cuda", "fork"})
"""Refusals that a process of a cell's own would meet too, if it imported and forked."""


@dataclass(frozen=True, kw_only=True)
class _Job:
    """One cell on its way."""

    cell: Cell
    environment: PreparedEnvironment
    settings: CellSettings
    token: str
    log: Path
    cancelled: threading.Event
    entered: Callable[[StageName], None]


class LocalRunner:
    """Runs cells as processes of this machine."""

    def __init__(self, context: RunContext) -> None:
        self._context = context
        self._pool = WarmPool(context.note)
        self._workers = itertools.count(1)
        self._forks = itertools.count(1)

    def prepare(self, stack: Stack) -> PreparedEnvironment:
        """Make the environment here."""
        return self._context.prepare(stack)

    def machines(self, device: Device) -> Collection[MachineKind]:
        """Return what this machine is."""
        return (machine_kind(device),)

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
        """Run one cell; None when it was cancelled."""
        job = _Job(
            cell=cell,
            environment=environment,
            settings=settings,
            token=f"{self._context.run_token}.{number:06}",
            log=self._context.store.running_log_path(cell),
            cancelled=cancelled,
            entered=entered,
        )
        result = self._run(job)
        if result is None:
            return None
        return Ran(result=result, key=self._context.fingerprints.of(cell, environment.identity))

    def _run(self, job: _Job) -> CellResult | None:
        """Run a cell by a warm worker, and by itself where that is lost too often."""
        for _ in range(WARM_ATTEMPTS if self._context.processes == "warm" else 0):
            try:
                return self._attempt(job, warm=True)
            except ParentLostError as error:
                if job.cancelled.is_set():
                    job.log.unlink(missing_ok=True)
                    return None
                self._context.note(f"{job.cell.id} runs again: {error}")
        return self._attempt(job, warm=False)

    def program(self, environment: PreparedEnvironment) -> list[str]:
        """Return the words that start a worker, its arguments apart: a cell's own process, or a warm one.

        This is for executors to override that run cells here and start them otherwise, under ``nice``, say.
        """
        return [str(environment.python), "-I", "-u", str(self._context.bundle.main)]

    def release(self, stack: Stack) -> None:
        """End the stack's warm worker."""
        self._pool.release(stack_key(stack))

    def close(self) -> None:
        """End all warm workers."""
        self._pool.close()

    def _attempt(self, job: _Job, *, warm: bool) -> CellResult | None:
        """Run the cell once, in a directory of its own.

        Raises:
            EnvironmentFailedError: there is no room for it.
            ParentLostError: its warm worker has died or was spoilt, so that there is nothing to say of the cell.
        """
        started = utc_now()
        work = self._make_work(job.cell)
        try:
            ended, home = self._run_in(work, job, warm=warm)
            if ended.ending == "cancelled":
                job.log.unlink(missing_ok=True)
                return None
            if ended.ending == "lost":
                raise ParentLostError(ended.detail)
            return self._result(job, work, home, ended, started)
        finally:
            shutil.rmtree(self._temporary(work), ignore_errors=True)
            if not self._context.keep:
                shutil.rmtree(work, ignore_errors=True)

    def _make_work(self, cell: Cell) -> Path:
        """Make a work directory; one that is kept has from the start the name that its cell has everywhere else.

        What is written there names it (an adapter names its base), so it cannot be moved afterwards. One from an
        earlier run, or from a warm worker that was lost, is removed.

        Raises:
            EnvironmentFailedError: it cannot be made.
        """
        scratch = self._context.scratch
        with writing("a cell's work directory", scratch):
            scratch.mkdir(parents=True, exist_ok=True)
            if self._context.keep:
                work = scratch / cell.family / cell.file_stem
                for old in filter(Path.exists, (work, self._temporary(work))):
                    shutil.rmtree(old)
                work.mkdir(parents=True)
            else:
                work = Path(tempfile.mkdtemp(prefix="cell-", dir=scratch))
            self._temporary(work).mkdir()
        return work

    def _temporary(self, work: Path) -> Path:
        """Return where a cell's temporary files go.

        Its path is short: libraries make sockets below it, and the path of a socket has at most 107 characters.
        """
        if not self._context.keep:
            return work / "tmp"
        return self._context.scratch / f"tmp-{hashlib.sha256(str(work).encode()).hexdigest()[:8]}"

    def _run_in(self, work: Path, job: _Job, *, warm: bool) -> tuple[SupervisedExit, Path | None]:
        """Run the cell in one process, forked by a warm worker where there is one; return that worker's home too."""
        request = WorkerRequest(
            cell=job.cell,
            work=work,
            bands=job.settings.bands,
            threads=job.settings.threads,
            processes="started" if self._context.processes == "started" else "forked",
        )
        if not warm:
            return self._run_started(request, job), None
        key = WorkerKey(stack=stack_key(job.cell.stack), device=job.cell.device, threads=job.settings.threads)
        try:
            with self._pool.worker(
                key,
                job.cell.stack.id,
                lambda: self._spec(job),
                cancelled=job.cancelled,
                seconds=job.settings.limits.seconds,
            ) as worker:
                return self._run_forked(worker, request, job), worker.spec.home.home
        except NoWorkerError as error:
            if error.refusal.kind in UNFORKABLE:
                request = replace(request, processes="started")
            return self._run_started(request, job), None
        except CancelledError:
            return SupervisedExit(ending="cancelled"), None

    def _run_forked(self, worker: WarmWorker, request: WorkerRequest, job: _Job) -> SupervisedExit:
        """Run the cell in a fork of ``worker``."""
        path = _write(request)
        command = shlex.join([*self.program(job.environment), str(path)])
        patience = Patience(cancelled=job.cancelled, until=time.monotonic() + job.settings.limits.seconds)
        return self._supervise(
            lambda _: worker.fork(
                next(self._forks),
                request=path,
                work=request.work,
                log=job.log,
                environment=self._variables(job, request.work),
                patience=patience,
            ),
            f"{command}  # forked from process {worker.pid}",
            request,
            job,
        )

    def _run_started(self, request: WorkerRequest, job: _Job) -> SupervisedExit:
        """Run the cell in a new process."""
        path = _write(request)
        command = [*self.program(job.environment), str(path)]
        return self._supervise(
            lambda log: Started(command, cwd=request.work, environment=self._variables(job, request.work), log=log),
            shlex.join(command),
            request,
            job,
        )

    def _supervise(
        self, start: Callable[[BinaryIO], Child], headline: str, request: WorkerRequest, job: _Job
    ) -> SupervisedExit:
        return run_supervised(
            start,
            headline=headline,
            log=job.log,
            limits=job.settings.limits,
            token=job.token,
            cancelled=job.cancelled,
            poll=StageWatch(request.observation, job.entered),
        )

    def _variables(self, job: _Job, work: Path) -> dict[str, str]:
        """All variables of the cell's process."""
        return {**self._environment(job, self._temporary(work)), TOKEN: job.token}

    def _environment(self, job: _Job, scratch: Path) -> dict[str, str]:
        return self._context.child_environment(
            scratch=scratch, threads=job.settings.threads, device=job.cell.device, prefix=job.environment.prefix
        )

    def _spec(self, job: _Job) -> WorkerSpec:
        """Say how a warm worker for cells like this one is started."""
        with writing("a warm worker's directory", self._context.scratch):
            home = Home(self._context.scratch)
        arguments = ("--warm", job.cell.device, str(job.settings.threads))
        return WorkerSpec(
            command=(*self.program(job.environment), *arguments),
            environment=self._environment(job, home.home),
            # As long as a cell's: a child writes its own over it.
            token=f"{self._context.run_token}.w{next(self._workers):05}",
            home=home,
        )

    def _result(self, job: _Job, work: Path, home: Path | None, ended: SupervisedExit, started: str) -> CellResult:
        return finalise(
            job.cell,
            observation=parse_observation(read_if_there(work / "observation.json")),
            ended=ended,
            stack=_stack_record(job.environment),
            redactor=self._context.redactor(work=work, home=home, environment=job.environment),
            log_tail=tail(job.log),
            log=self._context.store.relative(self._context.store.log_path(job.cell)),
            started=started,
        )


runner = LocalRunner
"""What ``--executor local`` makes."""


def capacity(device: Device) -> Capacity:
    """Return what this machine has."""
    cores = len(os.sched_getaffinity(0))
    cells = max(1, cores // GPU_CELL_PROCESSES) if device == "cuda" else None
    return Capacity(cores=cores, cells=cells, memory_mb=available_mb())


def _write(request: WorkerRequest) -> Path:
    with writing("a cell's request", request.work):
        return request.write()


def _stack_record(environment: PreparedEnvironment) -> StackRecord:
    """Return what a result says of its environment."""
    return StackRecord(
        versions=dict(environment.versions),
        lock_sha256=environment.lock_sha256,
        python_version=environment.python_version,
        seconds_resolve=environment.seconds_resolve,
        seconds_install=environment.seconds_install,
    )
