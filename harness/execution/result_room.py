"""How much room kept results may take, what they take, and making room: the least recently used go first.

Nothing is locked. A result that is removed while another run reads it has been read or is made again; one that is
written at the same time is there afterwards or is made again.
"""

from __future__ import annotations

import os
import re
import shutil
import stat
import time
from collections.abc import Iterator, Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.errors import ConfigurationError

ROOM_VARIABLE = "MOE_LORA_HARNESS_RESULTS_SIZE"
DEFAULT_ROOM = 2 * 2**30
"""Bytes: some 20,000 results with their logs."""
AFTERWARDS = 0.8
"""The share of the room that is still taken after making room, so that not every run has to."""
ABANDONED = 3600.0
"""Seconds after which a file that was never finished belongs to a run that is no more."""

_UNITS = {"": 1, "k": 2**10, "m": 2**20, "g": 2**30, "t": 2**40}


@dataclass(frozen=True, kw_only=True)
class Entry:
    """One kept result, or a log that a run which was killed has left without one.

    Attributes:
        path: its file, or where it would be; the log lies beside it. Where either is a folder, which nothing of ours
            makes, it goes with the entry.
        size: bytes of both.
        used: when it was last made or used, Unix time.
        whole: whether the result is there.
    """

    path: Path
    size: int
    used: float
    whole: bool


def results_room(environ: Mapping[str, str] | None = None) -> int:
    """Return how many bytes kept results may take: what ``MOE_LORA_HARNESS_RESULTS_SIZE`` says, else 2 GiB.

    0 means that none are kept and none are used.

    Raises:
        ConfigurationError: the variable says no size.
    """
    text = (os.environ if environ is None else environ).get(ROOM_VARIABLE, "").strip()
    if not text:
        return DEFAULT_ROOM
    found = re.fullmatch(r"(?P<number>\d{1,6}(?:\.\d{1,6})?)\s*(?P<unit>[kmgt]?)(?:i?b)?", text.lower())
    if found is None:
        raise ConfigurationError(f"{ROOM_VARIABLE}={text!r} is no size.", remedy="Write it as 500 MiB or 2 GiB, or 0.")
    number = float(found["number"])
    if number and not re.search("[a-z]", text.lower()):
        raise ConfigurationError(
            f"{ROOM_VARIABLE}={text!r} has no unit.", remedy=f"Write {text} GiB or {text} MiB, whichever is meant."
        )
    return int(number * _UNITS[found["unit"]])


def kept_results(root: Path) -> list[Entry]:
    """Return the results that are kept under ``root``, the least recently used first."""
    found: dict[Path, dict[str, os.stat_result]] = {}
    for path, status in _files(root):
        if path.suffix in {".json", ".log"} and not path.name.startswith("."):
            found.setdefault(path.with_suffix(".json"), {})[path.suffix] = status
    entries = (
        Entry(
            path=path,
            size=sum(status.st_size for status in files.values()),
            used=max(status.st_mtime for status in files.values()),
            whole=".json" in files and stat.S_ISREG(files[".json"].st_mode),
        )
        for path, files in found.items()
    )
    return sorted(entries, key=lambda entry: (entry.used, entry.path))


def make_room(root: Path, room: int) -> list[Entry]:
    """Remove results until no more than ``room`` bytes are taken, if more are; return those removed.

    What runs that were killed have left half-written goes as well.
    """
    for path, status in _files(root):
        if path.suffix == ".tmp" and time.time() - status.st_mtime > ABANDONED:
            _unlink(path)
    entries = kept_results(root)
    taken = sum(entry.size for entry in entries)
    if taken <= room:
        return []
    removed = []
    for entry in entries:
        if taken <= room * AFTERWARDS:
            break
        _remove(entry)
        removed.append(entry)
        taken -= entry.size
    return removed


def forget_results(root: Path, *, older_than_days: float | None = None) -> list[Entry]:
    """Remove kept results, all or those not used for so many days; return them."""
    limit = None if older_than_days is None else time.time() - older_than_days * 86400
    chosen = [entry for entry in kept_results(root) if limit is None or entry.used < limit]
    for entry in chosen:
        _remove(entry)
    return chosen


def _remove(entry: Entry) -> None:
    # The result first: a log alone is no entry.
    _unlink(entry.path)
    _unlink(entry.path.with_suffix(".log"))


def _unlink(path: Path) -> None:
    """Remove a file or a link, or a folder that lies where one should be."""
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path)
    else:
        path.unlink(missing_ok=True)


def _files(root: Path) -> Iterator[tuple[Path, os.stat_result]]:
    """Yield what lies one folder down; what goes away meanwhile is left out."""
    for folder in _below(root):
        for item in _below(folder) if not folder.is_symlink() else ():
            try:
                status = item.lstat()
            except FileNotFoundError:
                continue
            yield item, status


def _below(folder: Path) -> list[Path]:
    try:
        return sorted(folder.iterdir())
    except (FileNotFoundError, NotADirectoryError):
        return []
