"""Making shards durable beside the writing.

What is there is sent to the disk while the rest is computed. A finished shard is synced and handed on. It is finished
by whoever comes last: the thread that wrote its last piece, or the flush that was still under way.
"""

from __future__ import annotations

import os
from collections.abc import Callable
from concurrent.futures import Future
from threading import Lock
from types import TracebackType
from typing import Generic, Self, TypeVar

from harness.merge.errors import IncompleteMergeError
from harness.merge.files.copying import sync
from harness.merge.write.threads import Pool

FLUSH_BYTES = 64 * 1024 * 1024
"""How much of a shard is written before the disk is told to begin."""


class OpenFile:
    """A file of ``size`` bytes that several threads write: its descriptor, and how much is left to do before it may be
    closed.
    """

    def __init__(self, name: str, descriptor: int, size: int, pieces: int) -> None:
        self.name = name
        self.descriptor = descriptor
        self.size = size
        self._left = pieces
        self._unflushed = 0
        self._lock = Lock()

    def wrote(self, count: int) -> None:
        """Count bytes."""
        with self._lock:
            self._unflushed += count

    def begin_flush(self) -> bool:
        """Return whether it is time to send what is there to the disk; that is then one more thing to be done."""
        with self._lock:
            if self._unflushed < FLUSH_BYTES:
                return False
            self._unflushed = 0
            self._left += 1
            return True

    def done(self) -> bool:
        """Count a piece or a flush; return whether nothing is left to do."""
        with self._lock:
            self._left -= 1
            return self._left == 0

    def close(self) -> None:
        """Close the file, if it is open."""
        if self.descriptor >= 0:
            os.close(self.descriptor)
            self.descriptor = -1

    def finish(self) -> None:
        """Make the file durable, prove that it has its size, and close it.

        Raises:
            IncompleteMergeError: it cannot be synced, or has another size.
        """
        sync(self.descriptor, what=self.name)
        written = os.fstat(self.descriptor).st_size
        if written != self.size:
            raise IncompleteMergeError(f"{self.name} should have {self.size} bytes and has {written}.")
        self.close()


File = TypeVar("File", bound=OpenFile)


class Flusher(Generic[File]):
    """Threads that sync, ``most`` files at once.

    ``finished`` is called with each file that is complete and durable, one at a time.
    """

    def __init__(self, finished: Callable[[File], None], most: int) -> None:
        self._finished = finished
        self._finishing = Lock()
        self._pool = Pool(most, thread_name_prefix="merge-flush")
        self._futures: list[Future[None]] = []

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self._pool.shutdown(wait=True, cancel_futures=error is not None)
        if error is None:
            self.check()

    def piece_done(self, file: File) -> None:
        """Take note that a piece of a file is written."""
        if file.begin_flush():
            self._futures.append(self._pool.submit(self._flush, file))
        if file.done():
            self._futures.append(self._pool.submit(self._finish, file))

    def _flush(self, file: File) -> None:
        sync(file.descriptor, what=file.name)
        if file.done():
            self._finish(file)

    def _finish(self, file: File) -> None:
        file.finish()
        with self._finishing:
            self._finished(file)

    def check(self) -> None:
        """Raise what went wrong so far."""
        for future in self._futures:
            if future.done():
                future.result()
