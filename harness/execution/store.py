"""Results on disk: ``<out>/cells/<family>/<file_stem>.json`` and ``.log``, nothing else that a reader needs.

A result is written once, atomically, when its cell has ended. A log is written beside it under another name while the
cell runs, and takes its own when the result is there. So whatever interrupts a run, each result on disk is complete and
lies beside the log it belongs to.

To resume, a run must know whether a result on disk is the one it would make. So each result has a fingerprint: the
sha256 of everything that decides it (the cell with all its pins, the worker's code, the lock, bands, limits, the
schema). It is kept under ``<out>/.resume`` together with the sha256 of the result's bytes. So a result that somebody
edited, or put there from elsewhere, is made again.

A cell that a run has planned is a file ``<file_stem>.planned`` until that run has its result. So whoever reads a folder
knows what is missing from it, however the run ended.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Iterator, Mapping
from contextlib import contextmanager
from functools import cache
from pathlib import Path

from filelock import FileLock, Timeout

from harness.errors import ConfigurationError, InputRefusedError
from harness.execution.files import write_atomically
from harness.execution.loading import PLANNED, load_result
from harness.matrix.cell import Cell
from harness.result import CellResult


def fingerprint(cell: Cell, *, code_sha256: str, lock_sha256: str | None, settings: Mapping[str, object]) -> str | None:
    """Return the sha256 of what decides a cell's result, None where that is not known.

    It is not known of an interpreter without a lock, and of a source tree, which somebody is working on.

    Args:
        cell: the cell, whose stack holds every pin.
        code_sha256: the worker's code, see ``bundle``.
        lock_sha256: the environment's lock.
        settings: bands, limits, threads: JSON values.
    """
    if lock_sha256 is None or not all(source.reusable for source in cell.stack.sources.values()):
        return None
    parts = {
        "cell": cell.model_dump(mode="json"),
        "code": code_sha256,
        "lock": lock_sha256,
        "settings": settings,
        "schema": _schema(),
    }
    return hashlib.sha256(json.dumps(parts, sort_keys=True).encode()).hexdigest()


@cache
def _schema() -> str:
    """The schema of results, so that one of another shape is made again and not refused."""
    return json.dumps(CellResult.model_json_schema(), sort_keys=True)


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

    def save(self, result: CellResult, *, resume_key: str | None = None) -> Path:
        """Write a result, replacing an older one, and give its log its name.

        Args:
            result: the result.
            resume_key: its fingerprint; None for one that must be made again whenever it is asked for.

        Raises:
            ConfigurationError: the directory cannot be written to.
        """
        with self._writing(f"The result of {result.cell_id}"):
            return self._save(result, resume_key)

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

    def _save(self, result: CellResult, resume_key: str | None) -> Path:
        path = self.result_path(result.cell)
        content = (result.model_dump_json(indent=2) + "\n").encode()
        running = self.running_log_path(result.cell)
        write_atomically(path, content)
        if running.exists():
            running.replace(self.log_path(result.cell))
        elif result.log is None:
            self.log_path(result.cell).unlink(missing_ok=True)  # of an earlier run, about another result
        if resume_key is None:
            self._key_path(result.cell).unlink(missing_ok=True)
        else:
            write_atomically(self._key_path(result.cell), _key_content(resume_key, content))
        return path

    def finished(self, cell: Cell, resume_key: str | None) -> CellResult | None:
        """Return the cell's result on disk if a run with this fingerprint made it and it has not been touched since."""
        if resume_key is None:
            return None
        try:
            content = self.result_path(cell).read_bytes()
            key = self._key_path(cell).read_bytes()
        except FileNotFoundError:
            return None
        if key != _key_content(resume_key, content):
            return None
        return load_result(self.result_path(cell))

    def _key_path(self, cell: Cell) -> Path:
        return self.out / ".resume" / cell.family / cell.file_stem

    def _planned_path(self, cell: Cell) -> Path:
        return self.out / "cells" / cell.family / f"{cell.file_stem}{PLANNED}"

    @contextmanager
    def _writing(self, what: str) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise ConfigurationError(
                f"{what} cannot be written to {self.out}: {error.strerror}.",
                remedy="Make room there, or give another directory with --out; --resume keeps what is there already.",
            ) from error


def _key_content(resume_key: str, content: bytes) -> bytes:
    return f"{resume_key} {hashlib.sha256(content).hexdigest()}\n".encode()
