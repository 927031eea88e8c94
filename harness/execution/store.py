"""Results on disk: ``<out>/cells/<family>/<file_stem>.json`` and ``.log``, nothing else that a reader needs.

A result is written once, atomically, when its cell has ended. A log is written beside it under another name while the
cell runs, and takes its own when the result is there. So whatever interrupts a run, each result on disk is complete and
lies beside the log it belongs to.

A cell that a run has planned is a file ``<file_stem>.planned`` until that run has its result. So whoever reads a folder
knows what is missing from it, however the run ended.
"""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import ConfigurationError, InputRefusedError
from harness.execution.files import write_atomically
from harness.execution.loading import PLANNED, load_result
from harness.execution.result_cache import Kept
from harness.matrix.cell import Cell
from harness.result import CellResult


@contextmanager
def alone_in(out: Path) -> Iterator[None]:
    """Within the block no other process is in such a block with this directory.

    The kernel forgets the lock when this process dies, by whatever way.

    Raises:
        ConfigurationError: another process is, or the directory cannot be made or locked.
    """
    ResultStore(out)  # which makes it
    lock = FileLock(out / ".lock", timeout=0)
    try:
        lock.acquire()
    except Timeout:
        raise ConfigurationError(
            f"Another `harness matrix` is writing to {out}.",
            remedy="Wait for it, or give another directory with --out.",
        ) from None
    except (OSError, NotImplementedError) as error:
        raise ConfigurationError(
            f"{out} cannot be locked: {error}.", remedy="Give a directory on another file system with --out."
        ) from error
    try:
        yield
    finally:
        lock.release()


class ResultStore:
    """The results of one output directory."""

    def __init__(self, out: Path) -> None:
        """Make the directory if it is not there.

        Raises:
            ConfigurationError: it cannot be made or is not a directory.
        """
        self.out = out
        try:
            (out / "cells").mkdir(parents=True, exist_ok=True)
        except OSError as error:
            raise ConfigurationError(
                f"Results cannot be written to {out}: {error.strerror}.", remedy="Give another directory with --out."
            ) from error

    def result_path(self, cell: Cell) -> Path:
        """Where the cell's result is, or will be."""
        return self.out / "cells" / cell.family / f"{cell.file_stem}.json"

    def log_path(self, cell: Cell) -> Path:
        """Where the cell's log is, once it has a result."""
        return self.out / "cells" / cell.family / f"{cell.file_stem}.log"

    def plan(self, cells: Iterable[Cell]) -> None:
        """Write down that these cells are to have a result; whatever they had is of an earlier run from now on.

        Raises:
            ConfigurationError: the directory cannot be written to.
        """
        for cell in cells:
            content = (cell.model_dump_json(indent=2) + "\n").encode()
            with self._writing(f"The plan of {cell.id}"):
                write_atomically(self._planned_path(cell), content)

    def finish(self, cell: Cell) -> None:
        """Take out a planned cell: its result is there.

        Raises:
            ConfigurationError: the directory cannot be written to.
        """
        with self._writing(f"The plan of {cell.id}"):
            self._planned_path(cell).unlink(missing_ok=True)

    def running_log_path(self, cell: Cell) -> Path:
        """Where the cell's log is while it runs."""
        path = self.out / "cells" / cell.family / f"{cell.file_stem}.log.running"
        path.parent.mkdir(parents=True, exist_ok=True)
        return path

    def relative(self, path: Path) -> str:
        """Return a path as results name it: relative to the output directory, with slashes."""
        return path.relative_to(self.out).as_posix()

    def save(self, result: CellResult) -> Path:
        """Write a result, replacing an older one, and give its log its name.

        Raises:
            ConfigurationError: the directory cannot be written to.
        """
        path = self.result_path(result.cell)
        with self._writing(f"The result of {result.cell_id}"):
            running = self.running_log_path(result.cell)
            write_atomically(path, _content(result))
            if running.exists():
                running.replace(self.log_path(result.cell))
            elif result.log is None:
                self.log_path(result.cell).unlink(missing_ok=True)  # of an earlier run, about another result
        return path

    def with_history(self, result: CellResult) -> CellResult:
        """Return a result that knows when its cell last passed, by the result that it is about to replace.

        A result that cannot be read is no history.
        """
        try:
            before = load_result(self.result_path(result.cell))
        except InputRefusedError:
            return result
        passed = before.started if before.outcome == "pass" and before.cell.fault is None else before.last_passed
        return result.model_copy(update={"last_passed": passed})

    def take_over(self, kept: Kept, *, reused: str) -> CellResult:
        """Write a result that was kept as this directory's, its log beside it; return it.

        Args:
            kept: the result and its log.
            reused: when that was (ISO 8601, UTC).

        Raises:
            ConfigurationError: the directory cannot be written to.
        """
        cell = kept.result.cell
        log = self.log_path(cell)
        named = self.relative(log) if kept.log else None
        result = self.with_history(kept.result.model_copy(update={"log": named, "reused": reused}))
        with self._writing(f"The result of {cell.id}"):
            self.running_log_path(cell).unlink(missing_ok=True)
            if kept.log:
                write_atomically(log, kept.log, durable=False)
            else:
                log.unlink(missing_ok=True)
            write_atomically(self.result_path(cell), _content(result), durable=False)
        return result

    def _planned_path(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.family / f"{cell.file_stem}{PLANNED}"

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"{what} cannot be written to {self.out}: {error.strerror}.",
                remedy="Make room there, or give another directory with --out.",
            ) from error


def _content(result: CellResult) -> bytes:
    return (result.model_dump_json(indent=2) + "\n").encode()
