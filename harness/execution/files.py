"""Writing a file so that it is there completely or not at all, and reading what somebody else may have spoilt."""

from __future__ import annotations

import errno
import os
import stat
import tempfile
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import BinaryIO

from harness.errors import EnvironmentFailedError


def write_atomically(path: Path, content: bytes, *, durable: bool = True) -> None:
    """Write ``content`` to ``path`` by way of a temporary file, fsync and a rename; the directory is synced too.

    With ``durable`` false nothing is synced: for what can be had again where the machine loses power.
    """
    path.parent.mkdir(parents=True, exist_ok=True)
    descriptor, name = tempfile.mkstemp(prefix=f".{path.name[:40]}-", suffix=".tmp", dir=path.parent)
    temporary = Path(name)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            if durable:
                os.fsync(file.fileno())
        temporary.chmod(0o644)
        temporary.replace(path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise
    if durable:
        sync_directory(path.parent)


def sync_directory(directory: Path) -> None:
    """Make the names in ``directory`` durable."""
    descriptor = os.open(directory, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


LARGEST = 64 * 2**20
"""Bytes that are read of what somebody else has written; an observation has a few thousand."""


NO_FILE = "it is a pipe or a device and no file, and would be waited for"


@contextmanager
def _opened(path: Path) -> Iterator[BinaryIO]:
    """Open a regular file; a pipe that nobody writes to, or a device without an end, would be read for ever.

    Raises:
        OSError: there is none, or it cannot be read.
    """
    # Not blocking: opening a pipe would wait for a writer. Of a regular file it changes nothing.
    with os.fdopen(os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC | os.O_NOCTTY), "rb") as file:
        if not stat.S_ISREG(os.fstat(file.fileno()).st_mode):
            raise OSError(errno.EINVAL, NO_FILE, str(path))
        yield file


def read_if_there(path: Path) -> bytes | None:
    """Return the content of ``path``; None when there is no such file, or none that can be read, or it is too large."""
    try:
        return read_regular(path)
    except OSError:
        return None


def read_regular(path: Path) -> bytes:
    """Return the content of a regular file of at most ``LARGEST`` bytes.

    Raises:
        OSError: there is none, it cannot be read, it is something else (a pipe, a device), or it is too large.
    """
    with _opened(path) as file:
        content = file.read(LARGEST + 1)
    if len(content) > LARGEST:
        raise OSError(errno.EFBIG, f"more than {LARGEST // 2**20} MiB", str(path))
    return content


def tail(path: Path, *, lines: int = 20, limit: int = 16_384) -> str:
    """Return the last ``lines`` lines of ``path`` (at most ``limit`` bytes of it); "" when it cannot be read."""
    return "\n".join(_end(path, limit)[-lines:])


def stage_tail(path: Path, stage: str | None, *, lines: int = 20, limit: int = 1_048_576) -> str:
    """Return the last ``lines`` lines of a cell's log up to the end of a stage: the stages after it worked.

    Where its end is not in the last ``limit`` bytes, they are the last of the log.
    """
    found = _end(path, limit)
    ends = [number for number, line in enumerate(found) if line.startswith(f"=== stage {stage}: ")]
    return "\n".join(found[: ends[-1] + 1 if ends else len(found)][-lines:])


def _end(path: Path, limit: int) -> list[str]:
    """Return the lines in the last ``limit`` bytes of ``path``; none when it cannot be read."""
    try:
        with _opened(path) as file:
            size = file.seek(0, os.SEEK_END)
            file.seek(max(0, size - limit))
            text = file.read(limit).decode(errors="replace")
    except OSError:
        return []
    return text.rstrip().splitlines()


@contextmanager
def writing(what: str, place: Path) -> Iterator[None]:
    """Within the block something of a cell is written by the harness: where that fails, it is no finding.

    Args:
        what: what is written, in words.
        place: the directory that a person would look at.

    Raises:
        EnvironmentFailedError: it cannot be written.
    """
    try:
        yield
    except OSError as error:
        raise EnvironmentFailedError(
            f"{what} cannot be written: {error.strerror or error}",
            remedy=f"Free some space or inodes where {place} lies, and see that this user may write there.",
        ) from error
