"""Results that are kept for later runs: one file for each key, in the user's cache, beside it the cell's log.

``<root>/<first two digits>/<key>.json`` and ``.log``. The key is what decides a result (``fingerprint``), so a result
that is found under it is the one that the cell would come to. There is no list of them: folders of two machines are
merged by copying. Every file is written whole or not at all, the log before the result. So runs share the cache without
a lock, and whoever finds half of an entry, or one that somebody has edited, makes the cell anew.

Only what would happen again is kept: not what a machine did to a cell (a crash, memory, time, a full disk), and nothing
of a cell in which something was broken on purpose.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import os
import re
from collections.abc import Callable
from dataclasses import dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

from pydantic import ValidationError

from harness.contract.cell_fields import MEANINGS
from harness.execution.files import read_if_there, write_atomically
from harness.execution.result_room import make_room
from harness.execution.suspicious_json import read_json
from harness.matrix.cell import MAIN_PACKAGES, Cell
from harness.matrix.releases import utc
from harness.result import CellResult, StageResult

SCHEMA = 1
"""Of the files; one of another schema is not read."""

_CERTAIN = frozenset({"pass", "not_run", "fail", "noop", "blind", "unsupported"})
"""What becomes of a stage again when nothing that decides it has changed."""

_OF_THE_MACHINE = re.compile(
    r"No space left|[Qq]uota exceeded|Read-only file system|Input/output error|Too many open files"
    r"|Cannot allocate memory|MemoryError|[Oo]ut of memory|OutOfMemory|Resource temporarily unavailable"
    r"|can't start new thread|CUDA error|CUBLAS_STATUS|[Tt]imed? ?out|Connection (?:refused|reset)"
    r"|No CUDA GPUs|CUDNN_STATUS|CUDA driver|CUDA initiali[sz]ation|NVML|NCCL|bad_alloc|killed by signal|exit status -"
    r"|Stale file handle|Transport endpoint|No child processes|[Bb]roken ?[Pp]ipe|shared memory"
)
"""Exceptions that say something of the machine at that hour and nothing of the libraries."""

_READING_FAILED = re.compile(
    r"\[Errno \d+\]|\b(?:OS|IO|Permission|FileNotFound|BlockingIO|Interrupted|Timeout|EOF|UnicodeDecode|Syntax)Error\b"
    r"|marshal data|bad magic number|BadZipFile|zlib\.error|exit status"
)
"""Failures of an import that a file may have caused which could not be read, or not whole, at that hour."""


@dataclass(frozen=True, kw_only=True)
class Kept:
    """A result that was found, and its log."""

    result: CellResult
    log: bytes


class _UnusableError(Exception):
    """An entry is not what it should be; the message says how."""


def worth_keeping(result: CellResult, *, planted: bool = False) -> bool:
    """Say whether a cell would come to this result again.

    Args:
        result: what happened.
        planted: whether results of cells with a planted fault count as well.
    """
    if result.cell.unmanaged or (result.cell.fault is not None and not planted) or not _has_time(result.started):
        return False
    passed_over = (_first_import(result), *result.not_possible.values())
    if any(_OF_THE_MACHINE.search(words) for words in passed_over) or _READING_FAILED.search(_first_import(result)):
        return False
    return bool(result.stages) and all(_certain(stage) for stage in result.stages.values())


def _first_import(result: CellResult) -> str:
    """Return why the libraries did not import in the usual order, where they did in another; else nothing.

    If the disk is to blame, the cell would pass tomorrow in the usual order.
    """
    stage = result.stages.get("import")
    return (stage.reason or "") if stage is not None and result.import_first is not None else ""


def _certain(stage: StageResult) -> bool:
    """Say whether a stage would end so again. An exception would; a process that died of it may not."""
    if stage.result == "error":
        return stage.raised and _OF_THE_MACHINE.search(stage.reason or "") is None
    return stage.result in _CERTAIN


def _has_time(text: str | None) -> bool:
    """Say whether it is known when a result was made: one whose age cannot be told is not worth much."""
    try:
        utc(text or "")
    except ValueError:
        return False
    return True


class ResultCache:
    """The results that are kept under one folder."""

    def __init__(self, root: Path, *, room: int | None = None, planted: bool = False) -> None:
        """Look into ``root``, which need not exist.

        Args:
            root: the folder.
            room: how many bytes it may take (``result_room``); None: as many as there are.
            planted: whether results of cells with a planted fault are kept here.
        """
        self.root = root
        self._room = room
        self._planted = planted

    def find(self, cell: Cell, key: str | None, *, warn: Callable[[str], None]) -> Kept | None:
        """Return what is kept under a key, as the result of ``cell``; None where there is nothing that can be used.

        Args:
            cell: the cell that is asked for. Its versions may be declared in other words than when the result was made.
            key: what decides its result.
            warn: receives a sentence about an entry that is not what it should be.
        """
        if key is None or (cell.fault is not None and not self._planted):
            return None
        path = self._path(key)
        there = os.path.lexists(path)
        content = read_if_there(path)
        if content is None and there:
            content = read_if_there(path)  # another run may have made room, and have kept it again
        if content is None:
            if there and os.path.lexists(path):
                warn(f"{cell.id}: the kept result {path} cannot be read, so the cell runs")
            return None
        try:
            result = self._read(content, key, cell)
        except _UnusableError as error:
            warn(f"{cell.id}: the kept result {path} is ignored, so the cell runs: {error}")
            return None
        log = read_if_there(path.with_suffix(".log"))
        if log is None:
            return None  # on its way from another machine, or just being removed
        with contextlib.suppress(OSError):
            os.utime(path)  # its time stamp says when it was last used
        return Kept(result=result, log=log)

    def keep(self, result: CellResult, key: str | None, *, log: bytes | None, warn: Callable[[str], None]) -> bool:
        """Keep a result and its log for later runs if it is worth it; say whether it was.

        A cache that cannot be written is no reason to end a run: ``warn`` is told. Nor is a log that cannot be read,
        which is None: then nothing is kept.
        """
        if key is None or log is None or not worth_keeping(result, planted=self._planted):
            return False
        plain = result.model_copy(update={"log": None, "reused": None, "last_passed": None}).model_dump(mode="json")
        entry = {
            "schema": SCHEMA,
            "key": key,
            "sha256": _sha256(plain),
            "kept": datetime.now(UTC).isoformat(timespec="seconds"),
            "result": plain,
        }
        path = self._path(key)
        try:
            write_atomically(path.with_suffix(".log"), log)
            write_atomically(path, (json.dumps(entry, indent=1) + "\n").encode())
        except OSError as error:
            warn(f"{result.cell_id}: its result is not kept for later runs: {error.strerror}")
            return False
        return True

    def make_room(self, *, warn: Callable[[str], None]) -> None:
        """Remove what was not used for longest where more is kept than there is room for."""
        if self._room is None:
            return
        try:
            make_room(self.root, self._room)
        except OSError as error:
            warn(f"kept results cannot be removed from {self.root}: {error.strerror}")

    def _path(self, key: str) -> Path:
        return self.root / key[:2] / f"{key}.json"

    def _read(self, content: bytes, key: str, cell: Cell) -> CellResult:
        """Return the result in an entry as that of ``cell``.

        Raises:
            _UnusableError: it is no entry, or none of this key and cell.
        """
        try:
            entry = read_json(content)
        except ValueError as error:
            raise _UnusableError(f"not JSON ({error})") from None
        if not isinstance(entry, dict) or entry.get("schema") != SCHEMA:
            raise _UnusableError(f"not of schema {SCHEMA}")
        if entry.get("key") != key:
            raise _UnusableError("it has another key than its name")
        if entry.get("sha256") != _sha256(entry.get("result")):
            raise _UnusableError("it was edited")
        try:
            result = CellResult.model_validate(entry["result"])
        except ValidationError as error:
            first = error.errors(include_url=False, include_input=False)[0]
            raise _UnusableError(f"{'.'.join(map(str, first['loc']))}: {first['msg']}") from None
        asked = any(getattr(result.cell, name) != getattr(cell, name) for name in MEANINGS)
        if asked or any(getattr(result.cell.stack, name) != getattr(cell.stack, name) for name in MAIN_PACKAGES):
            raise _UnusableError("it is of another cell")
        if not worth_keeping(result, planted=self._planted):
            raise _UnusableError("its outcome is none that is kept")
        return result.model_copy(update={"cell": cell, "cell_id": cell.id})


def _sha256(value: Any) -> str:
    return hashlib.sha256(json.dumps(value, sort_keys=True).encode()).hexdigest()
