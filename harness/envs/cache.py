"""What the cache holds, and freeing it.

Environments are listed with their sizes. They are cleaned by id, by age or all, but never one in use.
"""

from __future__ import annotations

import os
import shutil
import time
from collections.abc import Callable, Collection, Iterator
from dataclasses import dataclass
from pathlib import Path

from harness.envs.guard import open_guard, try_exclusively
from harness.envs.layout import CacheLayout, cache_dir
from harness.envs.venv import MARKER, Record, read_record, remove
from harness.errors import UnknownNameError

__all__ = ["EnvironmentInfo", "cache_dir", "clean_environments", "has_environment", "list_environments"]


@dataclass(frozen=True, kw_only=True)
class EnvironmentInfo:
    """One environment of the cache.

    Attributes:
        id: its folder's name.
        path: its folder.
        stack: the stack's id, or None when it is not complete.
        complete: whether it has its marker and its Python; a half-made one is never used.
        record: all that its marker says, or None.
        apparent_bytes: the sizes of its files added up, which is what ``du --apparent-size`` says.
        real_bytes: disk blocks that no hard link outside shares. Removing it frees so much. The rest is in uv's cache.
        last_used: Unix time.
        in_use: whether a process holds it now.
    """

    id: str
    path: Path
    stack: str | None
    complete: bool
    record: Record | None
    apparent_bytes: int
    real_bytes: int
    last_used: float
    in_use: bool


def has_environment(stack: str, root: Path | None = None) -> bool:
    """Return whether a complete environment of a stack is in the cache, without looking at the size of any."""
    layout = CacheLayout(cache_dir() if root is None else root)
    records = map(read_record, layout.environments.iterdir() if layout.environments.is_dir() else ())
    return any(record is not None and record.label == stack for record in records)


def list_environments(root: Path | None = None) -> list[EnvironmentInfo]:
    """Return the environments of the cache, the least recently used first; empty when there is no cache."""
    layout = CacheLayout(cache_dir() if root is None else root)
    if not layout.environments.is_dir():
        return []
    found = [_inspect(layout, path) for path in sorted(layout.environments.iterdir()) if path.is_dir()]
    return sorted(found, key=lambda item: (item.last_used, item.id))


def clean_environments(
    ids: Collection[str] | None = None,
    *,
    older_than_days: float | None = None,
    locks: bool = False,
    root: Path | None = None,
    log: Callable[[str], None] | None = None,
) -> list[EnvironmentInfo]:
    """Remove environments and return those removed. One that a process uses stays, and ``log`` is told.

    Args:
        ids: only these (unambiguous beginnings will do); all when None.
        older_than_days: only those not used for so many days.
        locks: forget cached locks and known versions too, so that everything is resolved again.
        root: another cache than the user's.
        log: receives a line for each environment that stays because it is in use.

    Raises:
        UnknownNameError: an id that no environment has, or that several begin with.
        EnvironmentFailedError: something cannot be removed.
    """
    layout = CacheLayout(cache_dir() if root is None else root)
    say = log or (lambda _line: None)
    chosen = _select(list_environments(layout.root), ids)
    if older_than_days is not None:
        limit = time.time() - older_than_days * 86400
        chosen = [item for item in chosen if item.last_used < limit]
    removed = []
    for item in chosen:
        descriptor = open_guard(layout.guard(f"environment-{item.id}"))
        try:
            if try_exclusively(descriptor):
                remove(item.path)
                removed.append(item)
            else:
                say(f"{item.id} ({item.stack or 'being made'}) is in use and stays")
        finally:
            os.close(descriptor)
    if locks:
        for folder in (layout.locks, layout.known_versions):
            for path in folder.glob("[!.]*") if folder.is_dir() else ():  # what begins with a dot is being written
                if path.is_dir() and not path.is_symlink():  # nothing of ours makes one there
                    shutil.rmtree(path)
                else:
                    path.unlink(missing_ok=True)
    return removed


def _select(found: list[EnvironmentInfo], ids: Collection[str] | None) -> list[EnvironmentInfo]:
    if ids is None:
        return found
    chosen: dict[str, EnvironmentInfo] = {}
    for wanted in ids:
        matches = [item for item in found if item.id.startswith(wanted)]
        if len(matches) != 1:
            raise UnknownNameError("environment", wanted, [item.id for item in found])
        chosen[matches[0].id] = matches[0]
    return list(chosen.values())


def _inspect(layout: CacheLayout, path: Path) -> EnvironmentInfo:
    record = read_record(path)
    apparent, real = _sizes(path)
    marker = path / MARKER
    return EnvironmentInfo(
        id=path.name,
        path=path,
        stack=record.label if record else None,
        complete=record is not None,
        record=record,
        apparent_bytes=apparent,
        real_bytes=real,
        last_used=(marker if marker.exists() else path).stat().st_mtime,
        in_use=_in_use(layout, path.name),
    )


def _in_use(layout: CacheLayout, key: str) -> bool:
    descriptor = open_guard(layout.guard(f"environment-{key}"))
    try:
        return not try_exclusively(descriptor)
    finally:
        os.close(descriptor)


def _sizes(path: Path) -> tuple[int, int]:
    """Return (apparent, real) bytes; files that go away while being counted count nothing."""
    apparent = real = 0
    for entry in _entries(path):
        try:
            status = entry.stat(follow_symlinks=False)
        except FileNotFoundError:
            continue
        apparent += status.st_size
        real += status.st_blocks * 512 if status.st_nlink == 1 else 0  # st_blocks counts 512-byte units (POSIX)
    return apparent, real


def _entries(path: Path) -> Iterator[os.DirEntry[str]]:
    try:
        entries = list(os.scandir(path))
    except FileNotFoundError:
        return
    for entry in entries:
        if entry.is_dir(follow_symlinks=False):
            yield from _entries(Path(entry.path))
        else:
            yield entry
