"""Results on disk: ``<out>/cells/<family>/<file_stem>.json`` and ``.log``, nothing else that a reader needs.

A result is written once, atomically, when its cell has ended. A log is written beside it under another name while the
cell runs, and takes its own when the result is there. So whatever interrupts a run, each result on disk is complete and
lies beside the log it belongs to.

To resume, a run must know whether a result on disk is the one it would make. So each result has a fingerprint: the
sha256 of everything that decides it (the cell with all its pins, the worker's code, the lock, bands, limits, the
schema). It is kept under ``<out>/.resume`` together with the sha256 of the result's bytes. So a result that somebody
edited, or put there from elsewhere, is made again.
"""

from __future__ import annotations

import hashlib
import json
from collections.abc import Iterable, Mapping
from functools import cache
from pathlib import Path

from pydantic import ValidationError

from harness.errors import ConfigurationError, InputRefusedError
from harness.execution.files import write_atomically
from harness.execution.suspicious_json import encodable, read_json
from harness.matrix.cell import Cell
from harness.result import SCHEMA_VERSION, CellResult


def fingerprint(cell: Cell, *, code_sha256: str, lock_sha256: str | None, settings: Mapping[str, object]) -> str | None:
    """Return the sha256 of what decides a cell's result, None where that is not known (an interpreter without a lock).

    Args:
        cell: the cell, whose stack holds every pin.
        code_sha256: the worker's code, see ``bundle``.
        lock_sha256: the environment's lock.
        settings: bands, limits, threads: JSON values.
    """
    if lock_sha256 is None:
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
        try:
            return self._save(result, resume_key)
        except OSError as error:
            raise ConfigurationError(
                f"The result of {result.cell_id} cannot be written to {self.out}: {error.strerror}.",
                remedy="Make room there, or give another directory with --out; --resume keeps what is there already.",
            ) from error

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


def _key_content(resume_key: str, content: bytes) -> bytes:
    return f"{resume_key} {hashlib.sha256(content).hexdigest()}\n".encode()


def load_result(path: Path) -> CellResult:
    """Read one result.

    Raises:
        InputRefusedError: it cannot be read, is not JSON, has another schema version or does not fit the schema.
    """
    try:
        value = read_json(path.read_bytes())
        # No result that we wrote has half a surrogate pair, and a report could not be written with one.
        json.dumps(value, ensure_ascii=False).encode()
    except OSError as error:
        raise InputRefusedError(f"{path}: cannot be read: {error.strerror}.") from error
    except ValueError as error:
        raise InputRefusedError(
            f"{path}: not JSON ({encodable(str(error))}).",
            remedy="The file is damaged; remove it and run the cell again.",
        ) from error
    version = value.get("schema_version") if isinstance(value, dict) else None
    if version != SCHEMA_VERSION:
        said = "no schema_version" if version is None else f"schema_version {version!r}"
        raise InputRefusedError(
            f"{path}: {said}; this program reads {SCHEMA_VERSION}.",
            remedy="It is no result of a cell, or another release of the harness wrote it: use that release.",
        )
    try:
        return CellResult.model_validate(value)
    except ValidationError as error:
        first = error.errors(include_url=False, include_input=False)[0]
        place = ".".join(str(part) for part in first["loc"])
        raise InputRefusedError(
            f"{path}: not a result of a cell: {place}: {first['msg']} ({error.error_count()} problems).",
            remedy="The file is damaged or was edited; remove it and run the cell again.",
        ) from error


def result_files(paths: Iterable[Path]) -> list[Path]:
    """Return the result files that ``paths`` name, each once, in the order given and by name within a directory.

    A file stands for itself. A directory stands for every ``cells/<family>/*.json`` below it. So an output directory
    can be given, or one that holds those of several shards. A ``cells`` directory may be given too.

    Raises:
        ConfigurationError: a path that is not there, or a directory without results.
    """
    found: dict[Path, None] = {}
    for path in paths:
        if path.is_file():
            files = [path]
        elif path.is_dir():
            files = sorted(path.glob("*/*.json") if path.name == "cells" else path.rglob("cells/*/*.json"))
            if not files:
                raise ConfigurationError(
                    f"{path} holds no results.", remedy="Give an output directory: it holds cells/<family>/<cell>.json."
                )
        else:
            raise ConfigurationError(f"{path} does not exist.", remedy="Give result files or output directories.")
        found |= dict.fromkeys(file.resolve() for file in files)
    return list(found)


def load_results(paths: Iterable[Path]) -> list[CellResult]:
    """Read every result that ``paths`` name, see ``result_files`` and ``load_result``.

    Two of one cell are both returned.
    """
    return [load_result(path) for path in result_files(paths)]
