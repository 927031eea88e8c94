"""Moving bytes between files: ranges copied by the kernel where it can, complete writes, and durable files."""

from __future__ import annotations

import errno
import os
from pathlib import Path

from harness.merge.errors import IncompleteMergeError, InputChangedError, UnreadableInputError
from harness.merge.files.safetensors_file import read_range

CHUNK = 8 * 1024 * 1024
NOT_OFFERED = {errno.ENOSYS, errno.EXDEV, errno.EINVAL, errno.EOPNOTSUPP, errno.EPERM, errno.EBADF}
"""What copy_file_range says where this kernel or this pair of file systems does not offer it."""


def failed(what: str, error: OSError) -> IncompleteMergeError:
    """Return the error for output that could not be written."""
    remedy = "Free some space and run the merge again." if error.errno in {errno.ENOSPC, errno.EDQUOT} else None
    return IncompleteMergeError(
        f"{what} could not be written: {error.strerror or error}. Nothing was published.", remedy
    )


def write_at(descriptor: int, data: bytes | bytearray | memoryview, offset: int, *, what: str) -> None:
    """Write all of ``data`` at ``offset``.

    Raises:
        IncompleteMergeError: the write failed (disk full, say).
    """
    view = memoryview(data).cast("B")
    done = 0
    while done < len(view):
        try:
            done += os.pwrite(descriptor, view[done:], offset + done)
        except OSError as error:
            raise failed(what, error) from error


def copy_range(source: int, target: int, start: int, stop: int, offset: int, *, what: str) -> None:
    """Copy the bytes ``[start, stop)`` of ``source`` to ``offset`` of ``target``.

    Raises:
        InputChangedError: the source is shorter than it was.
        UnreadableInputError: reading failed.
        IncompleteMergeError: writing failed.
    """
    while start < stop:
        try:
            count = os.copy_file_range(source, target, stop - start, start, offset)
        except OSError as error:
            if error.errno in {errno.ENOSPC, errno.EDQUOT, errno.EFBIG}:
                raise failed(what, error) from error
            if error.errno not in NOT_OFFERED:
                raise UnreadableInputError(f"{what} cannot be copied: {error.strerror or error}.") from error
            return _copy_through_memory(source, target, start, stop, offset, what=what)
        if count == 0:
            raise InputChangedError(f"{what} became shorter while it was being copied.")
        start, offset = start + count, offset + count
    return None


def _copy_through_memory(source: int, target: int, start: int, stop: int, offset: int, *, what: str) -> None:
    for position in range(start, stop, CHUNK):
        data = read_range(source, position, min(position + CHUNK, stop), what=what)
        write_at(target, data, offset + position - start, what=what)


def copy_file(source: Path, target: Path, *, what: str) -> None:
    """Copy a whole file and make it durable."""
    try:
        read = os.open(source, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableInputError(f"{what} cannot be read: {error.strerror or error}.") from error
    try:
        write = create(target, what=what)
        try:
            copy_range(read, write, 0, os.fstat(read).st_size, 0, what=what)
            sync(write, what=what)
        finally:
            os.close(write)
    finally:
        os.close(read)


def write_file(target: Path, data: bytes) -> None:
    """Write a new file and make it durable."""
    descriptor = create(target, what=target.name)
    try:
        write_at(descriptor, data, 0, what=target.name)
        sync(descriptor, what=target.name)
    finally:
        os.close(descriptor)


def create(target: Path, *, what: str) -> int:
    """Return a descriptor of a file that did not exist, its parent directories made."""
    try:
        target.parent.mkdir(parents=True, exist_ok=True)
        return os.open(target, os.O_RDWR | os.O_CREAT | os.O_EXCL | os.O_CLOEXEC, 0o666)
    except OSError as error:
        raise failed(what, error) from error


def sync(descriptor: int, *, what: str) -> None:
    """Flush a file to the disk."""
    try:
        os.fsync(descriptor)
    except OSError as error:
        raise failed(what, error) from error


def sync_directory(path: Path) -> None:
    """Flush a directory's entries to the disk."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        sync(descriptor, what=path.name)
    finally:
        os.close(descriptor)
