"""Input files that stay open: each is opened once, and proved to be the file whose header was read."""

from __future__ import annotations

import hashlib
import os
import stat
from threading import Lock
from types import TracebackType
from typing import Self

from harness.merge.errors import InputChangedError, UnreadableInputError
from harness.merge.files.safetensors_file import TensorFile, read_into, read_range


class InputFiles:
    """Descriptors of input files, closed together; shared by threads.

    ``whose`` is said of a file in messages, where its name alone could be two files' (" of the merged checkpoint").
    ``bytes_read`` counts what was read through ``read`` and ``read_into``, headers apart.
    """

    def __init__(self, whose: str = "") -> None:
        self._whose = whose
        self._open: dict[int, tuple[TensorFile, int]] = {}
        self._lock = Lock()
        self.bytes_read = 0

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for _, descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def of(self, file: TensorFile) -> int:
        """Return a descriptor of a file.

        Raises:
            InputChangedError: it is no longer the file that was planned with.
            UnreadableInputError: it cannot be opened or read.
        """
        with self._lock:
            return self._descriptor(file)

    def read_into(self, file: TensorFile, start: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes of a file from ``start`` on."""
        read_into(self._counted(file, len(view)), view, start, what=self._named(file))

    def read(self, file: TensorFile, start: int, stop: int) -> bytearray:
        """Return the bytes ``[start, stop)`` of a file."""
        return read_range(self._counted(file, stop - start), start, stop, what=self._named(file))

    def _counted(self, file: TensorFile, size: int) -> int:
        with self._lock:
            descriptor = self._descriptor(file)
            self.bytes_read += size
            return descriptor

    def _named(self, file: TensorFile) -> str:
        return f"{file.name}{self._whose}"

    def _descriptor(self, file: TensorFile) -> int:
        # By header and not by path: one path may have been read twice, and have changed between.
        found = self._open.get(id(file))
        if found is None:
            found = self._open[id(file)] = (file, self._opened(file))
        return found[1]

    def _opened(self, file: TensorFile) -> int:
        """Open a file and hold its size and its header, as bytes, against those that were read before."""
        try:
            # Opening a pipe that took the file's place would wait for ever.
            descriptor = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK)
        except OSError as error:
            raise UnreadableInputError(f"{self._named(file)} cannot be read: {error.strerror or error}.") from error
        try:
            self._check(file, descriptor)
        except BaseException:
            os.close(descriptor)
            raise
        return descriptor

    def _check(self, file: TensorFile, descriptor: int) -> None:
        now = os.fstat(descriptor)
        same = stat.S_ISREG(now.st_mode) and now.st_size == file.size
        if same:
            header = read_range(descriptor, 0, file.data_start, what=self._named(file))
            same = hashlib.sha256(header).hexdigest() == file.header_sha256
        if not same:
            raise InputChangedError(
                f"{self._named(file)} is no longer the file that was planned with.",
                "Start again, and change no input meanwhile.",
            )
