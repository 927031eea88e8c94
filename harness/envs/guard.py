"""Guards: one lock file per thing in the cache, held exclusively to make or remove it and shared to use it.

The lock is POSIX ``flock``. One that only excludes is not enough. Several processes use an environment at once, and the
one that cleans must know whether anybody does. The kernel drops a guard when its process ends, however it ends. So
nothing stale is ever left behind. Guard files are empty and stay: removing one while another process waits for it would
split the lock.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from harness.errors import EnvironmentFailedError


def open_guard(path: Path) -> int:
    """Open (and make, if need be) the guard file at ``path`` and return its descriptor, which children do not inherit.

    Raises:
        EnvironmentFailedError: the folder cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        return os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise EnvironmentFailedError(
            f"The cache folder cannot be written: {error}.",
            remedy="Check its owner and the free space, or name another folder in MOE_LORA_HARNESS_CACHE.",
        ) from error


def hold_exclusively(descriptor: int, *, waiting: Callable[[], None]) -> None:
    """Wait until nobody else holds the guard, and hold it. ``waiting`` is called once if it has to wait."""
    if not try_exclusively(descriptor):
        waiting()
        fcntl.flock(descriptor, fcntl.LOCK_EX)


def try_exclusively(descriptor: int) -> bool:
    """Hold the guard exclusively if nobody else holds it; return whether it is held."""
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def hold_shared(descriptor: int) -> None:
    """Hold the guard together with others; waits while somebody holds it exclusively."""
    fcntl.flock(descriptor, fcntl.LOCK_SH)


@contextmanager
def exclusively(path: Path, *, waiting: Callable[[], None]) -> Iterator[None]:
    """Hold the guard at ``path`` exclusively for the length of a ``with`` block."""
    descriptor = open_guard(path)
    try:
        hold_exclusively(descriptor, waiting=waiting)
        yield
    finally:
        os.close(descriptor)
