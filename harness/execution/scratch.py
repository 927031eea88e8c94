"""Where cells work: one temporary directory per run, which goes with the run however it ends.

A run that is killed outright cannot clean up after itself. The next one does it: a directory whose lock nobody holds
belongs to a run that is no more.
"""

from __future__ import annotations

import os
import shutil
import tempfile
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from filelock import FileLock

from harness.execution.files import writing

PREFIX = "moe-lora-harness-"
LOCK = ".lock"
GRACE = 60.0
"""Seconds for which a directory without a holder is left alone. Its run may be about to take the lock."""


@contextmanager
def scratch_directory() -> Iterator[Path]:
    """Make this run's directory, remove those of dead runs, and remove it at the end.

    Raises:
        EnvironmentFailedError: it cannot be made.
    """
    place = Path(tempfile.gettempdir())
    remove_abandoned(place)
    with writing("the run's directory", place):
        # What cannot be removed at the end is left to the next run: the results are there.
        directory = tempfile.TemporaryDirectory(prefix=PREFIX, dir=place, ignore_cleanup_errors=True)
    with directory as name, FileLock(Path(name) / LOCK):
        yield Path(name)


def remove_abandoned(place: Path) -> list[Path]:
    """Remove our directories under ``place`` that no living run holds; return them."""
    removed = []
    for path in sorted(place.glob(f"{PREFIX}*")):
        try:
            status = path.lstat()
            if not path.is_dir() or path.is_symlink() or status.st_uid != os.getuid():
                continue
            if time.time() - status.st_mtime < GRACE:
                continue
            with FileLock(path / LOCK, timeout=0):
                shutil.rmtree(path)
        except OSError:
            continue  # a living run holds it, another one has just removed it, or it does not let itself be removed
        removed.append(path)
    return removed
