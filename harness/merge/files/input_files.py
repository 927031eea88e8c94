"""Input files that stay open: each is opened once, and proved to be the file whose header was read."""

from __future__ import annotations

import hashlib
import os
import stat
from threading import Lock
from types import TracebackType
from typing import NamedTuple, Self

from harness.merge.errors import InputChangedError, UnreadableInputError
from harness.merge.files.safetensors_file import TensorFile, read_into, read_range


class _Open(NamedTuple):
    """An open file. ``file`` is kept so that its identity stays its own; ``name`` is for messages."""

    file: TensorFile
    descriptor: int
    name: str


class InputFiles:
    """Descriptors of input files, closed together; shared by threads.

    ``whose`` is said of a file in messages, where its name alone could be two files' (" of the merged checkpoint").
    ``bytes_read`` counts what was read through ``read`` and ``read_into``, headers apart.
    """

    def __init__(self, whose: str = "") -> None:
        self._whose = whose
        # By header and not by path: one path may have been read twice, and have changed between.
        self._open: dict[int, _Open] = {}
        self._lock = Lock()
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for one in self._open.values():
            os.close(one.descriptor)
        self._open.clear()

    def of(self, file: TensorFile) -> int:
        """Return a descriptor of a file.

        Raises:
            InputChangedError: it is no longer the file that was planned with.
            UnreadableInputError: it cannot be opened or read.
        """
        return self._found(file, 0).descriptor

    def read_into(self, file: TensorFile, start: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes of a file from ``start`` on."""
        found = self._found(file, len(view))
        read_into(found.descriptor, view, start, what=found.name)

    def read(self, file: TensorFile, start: int, stop: int) -> bytearray:
        """Return the bytes ``[start, stop)`` of a file."""
        found = self._found(file, stop - start)
        return read_range(found.descriptor, start, stop, what=found.name)

    def _found(self, file: TensorFile, size: int) -> _Open:
        """Return an open file, of which ``size`` bytes are about to be read."""
        with self._lock:
            self.bytes_read += size
            found = self._open.get(id(file))
            if found is None:
                name = f"{file.name}{self._whose}"
                found = self._open[id(file)] = _Open(file, _opened(file, name), name)
            return found


def _opened(file: TensorFile, name: str) -> int:
    """Open a file and hold its size and its header, as bytes, against those that were read before."""
    try:
        # Opening a pipe that took the file's place would wait for ever.
        descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
    except OSError as error:
        raise UnreadableInputError(f"{name} cannot be read: {error.strerror or error}.") from error
    try:
        _check(file, descriptor, name)
    except BaseException:
        os.close(descriptor)
        raise
    return descriptor


def _check(file: TensorFile, descriptor: int, name: str) -> None:
    now = os.fstat(descriptor)
    same = stat.S_ISREG(now.st_mode) and now.st_size == file.size
    if same:
        header = read_range(descriptor, 0, file.data_start, what=name)
        same = hashlib.sha256(header).hexdigest() == file.header_sha256
    if not same:
        raise InputChangedError(
            f"{name} is no longer the file that was planned with.",
            "Start again, and change no input meanwhile.",
        )
