"""One cell on this machine: a work directory, a request, a supervised worker, a result.

What is needed from other packages is handed in as values (an environment, a function that gives a child's variables), so
that another executor, or a test with a worker of three lines, needs nothing else.
"""

from __future__ import annotations

import datetime as dt
import shutil
import tempfile
import threading
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from harness.contract.stages import StageName
from harness.execution.bundle import Bundle
from harness.execution.files import tail
from harness.execution.finalise import StackRecord, finalise
from harness.execution.observation import parse_observation
from harness.execution.redact import Redactor
from harness.execution.request import WorkerRequest
from harness.execution.services import CellSettings, ChildEnvironment, PreparedEnvironment
from harness.execution.store import ResultStore
from harness.execution.supervise import run_supervised
from harness.matrix.cell import Cell
from harness.result import CellResult


@dataclass(frozen=True, kw_only=True)
class LocalRunner:
    """Runs cells as child processes of this one.

    Attributes:
        bundle: the worker's code.
        cache: the harness's cache directory, only to be taken out of texts.
        scratch: where work directories are made.
        store: where logs go.
        child_environment: gives a child's variables.
        keep: leave the work directories, as ``<scratch>/<family>/<file stem>``.
        run_token: the label of this run's processes.
    """

    bundle: Bundle
    cache: Path
    scratch: Path
    store: ResultStore
    child_environment: ChildEnvironment
    keep: bool
    run_token: str

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
        """Run one cell; None when it was cancelled. May be called from several threads at once.

        Args:
            cell: the cell.
            environment: where it runs.
            settings: limits, bands, threads.
            number: distinguishes it from the other cells of the run.
            cancelled: when set, the cell is killed.
            entered: called with each stage that the worker is seen in.
        """
        started = utc_now()
        self.scratch.mkdir(parents=True, exist_ok=True)
        # Short names: libraries make sockets below it, and the path of a socket has at most 107 characters.
        work = Path(tempfile.mkdtemp(prefix="cell-", dir=self.scratch))
        temporary = work / "tmp"
        temporary.mkdir()
        log = self.store.running_log_path(cell)
        request = WorkerRequest(
            cell=cell,
            work=work,
            bands=settings.bands,
            threads=settings.threads,
        )
        try:
            ended = run_supervised(
                [str(environment.python), "-I", "-u", str(self.bundle.main), str(request.write())],
                cwd=work,
                environment=self.child_environment(
                    scratch=temporary, threads=settings.threads, device=cell.device, prefix=environment.prefix
                ),
                log=log,
                limits=settings.limits,
                token=f"{self.run_token}.{number}",
                cancelled=cancelled,
                poll=_StageWatch(request.observation, entered),
            )
            if ended.ending == "cancelled":
                log.unlink(missing_ok=True)
                return None
            return finalise(
                cell,
                observation=parse_observation(_read(request.observation)),
                ended=ended,
                stack=stack_record(environment),
                redactor=self.redactor(work=work, environment=environment),
                log_tail=tail(log),
                log=self.store.relative(self.store.log_path(cell)),
                started=started,
            )
        finally:
            if self.keep:
                _keep(work, self.scratch / cell.family / cell.file_stem)
            else:
                shutil.rmtree(work, ignore_errors=True)

    def redactor(self, *, work: Path | None = None, environment: PreparedEnvironment | None = None) -> Redactor:
        """Return what takes this machine out of the texts of a cell's result."""
        places = {"code": self.bundle.root, "cache": self.cache, "out": self.store.out, "home": Path.home()}
        if work is not None:
            places["work"] = work
        if environment is not None:
            places["env"] = environment.prefix
        return Redactor(places)


def _keep(work: Path, place: Path) -> None:
    """Give a work directory the name that its cell has everywhere else, in place of one from an earlier run."""
    if place.exists():
        shutil.rmtree(place)
    place.parent.mkdir(parents=True, exist_ok=True)
    work.rename(place)


class _StageWatch:
    """Looks which stage a worker says it is in, and reports each once."""

    def __init__(self, observation: Path, entered: Callable[[StageName], None]) -> None:
        self._observation = observation
        self._entered = entered
        self._seen: StageName | None = None
        self._stamp: tuple[int, int] | None = None

    def __call__(self) -> None:
        try:
            status = self._observation.stat()
        except FileNotFoundError:
            return
        stamp = (status.st_ino, status.st_mtime_ns)
        if stamp == self._stamp:
            return
        self._stamp = stamp
        stage = parse_observation(_read(self._observation)).running
        if stage is not None and stage != self._seen:
            self._seen = stage
            self._entered(stage)


def stack_record(environment: PreparedEnvironment) -> StackRecord:
    """Return what a result says of its environment."""
    return StackRecord(
        versions=dict(environment.versions),
        lock_sha256=environment.lock_sha256,
        python_version=environment.python_version,
        seconds_resolve=environment.seconds_resolve,
        seconds_install=environment.seconds_install,
    )


def utc_now() -> str:
    """The present moment as results write it: ISO 8601, UTC, whole seconds."""
    return dt.datetime.now(tz=dt.UTC).isoformat(timespec="seconds")


def _read(path: Path) -> bytes | None:
    try:
        return path.read_bytes()
    except FileNotFoundError:
        return None
