"""The page cache before a measurement: cold (dropped) or warm (just read), and the disk at rest in either case."""

from __future__ import annotations

import ctypes
import mmap
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Literal

State = Literal["cold", "warm"]
BLOCK = 1 << 24


def files_below(*directories: Path) -> list[Path]:
    """Return every file below some directories, in order."""
    return [path for directory in directories for path in sorted(directory.rglob("*")) if path.is_file()]


def settle() -> None:
    """Write out everything that is dirty, so that nobody pays for what somebody else left behind."""
    os.sync()


def drop(files: Iterable[Path]) -> None:
    """Drop files from this machine's page cache: they must be clean, so sync first.

    A host below a virtual disk may still have them.
    """
    for path in files:
        descriptor = os.open(path, os.O_RDONLY)
        try:
            os.posix_fadvise(descriptor, 0, 0, os.POSIX_FADV_DONTNEED)
        finally:
            os.close(descriptor)


def fill(files: Iterable[Path]) -> None:
    """Read files from beginning to end."""
    buffer = bytearray(BLOCK)
    for path in files:
        with path.open("rb", buffering=0) as file:
            while file.readinto(buffer):
                pass


def prepare(state: State, files: Iterable[Path]) -> None:
    """Bring the page cache into ``state`` for ``files``."""
    files = list(files)
    settle()
    if state == "cold":
        drop(files)
    else:
        fill(files)


def cached_share(files: Iterable[Path]) -> float:
    """Return which share of the pages of some files is in the page cache (``mincore``): 0 to 1."""
    libc = ctypes.CDLL(None, use_errno=True)
    libc.mincore.argtypes = (ctypes.c_void_p, ctypes.c_size_t, ctypes.c_char_p)
    inside = pages = 0
    for path in files:
        size = path.stat().st_size
        if size == 0:
            continue
        with (
            path.open("rb") as file,
            mmap.mmap(file.fileno(), size, mmap.MAP_PRIVATE, mmap.PROT_READ | mmap.PROT_WRITE) as view,
        ):
            count = -(-size // mmap.PAGESIZE)
            vector = ctypes.create_string_buffer(count)
            anchor = ctypes.c_char.from_buffer(view)
            failed = libc.mincore(ctypes.addressof(anchor), size, vector)
            del anchor
            if failed:
                raise OSError(ctypes.get_errno(), os.strerror(ctypes.get_errno()))
            inside += sum(byte & 1 for byte in vector.raw)
            pages += count
    return inside / pages if pages else 0.0
