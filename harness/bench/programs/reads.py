"""How many bytes of the base's tensors a merge takes into memory, which is at least what it decodes.

Every way in which Python reads from a descriptor is wrapped for one merge that is not timed; what the kernel copies
from file to file does not count. A mapped file counts in full. If the engine states ``bytes_decoded`` in its report,
that is returned as well.
"""

from __future__ import annotations

import mmap
import os
import threading
from collections.abc import Callable, Iterable
from pathlib import Path
from typing import Any

from harness.bench.contenders import reference


def load() -> dict[str, str]:
    """Import everything that merging imports."""
    return reference.load()


class Reads:
    """Counts what is read from the safetensors files below a directory, their headers apart."""

    def __init__(self, root: Path) -> None:
        self._root = str(root)
        self._starts: dict[str, int] = {}
        self._lock = threading.Lock()
        self.count = 0

    def _data_start(self, path: str) -> int:
        if path not in self._starts:
            with Path(path).open("rb") as file:
                self._starts[path] = 8 + int.from_bytes(file.read(8), "little")
        return self._starts[path]

    def note(self, descriptor: int, count: int, offset: int) -> None:
        """Take a read of ``count`` bytes at ``offset`` into account."""
        path = str(Path(f"/proc/self/fd/{descriptor}").readlink())
        if path.startswith(self._root + os.sep) and path.endswith(".safetensors"):
            with self._lock:
                self.count += max(0, offset + count - max(offset, self._data_start(path)))

    def wrap(self) -> None:
        """Replace the functions of ``os`` that read, and ``mmap.mmap``."""
        pread, preadv, read, readv, mapped = os.pread, os.preadv, os.read, os.readv, mmap.mmap

        def counted_pread(descriptor: int, length: int, offset: int, /) -> bytes:
            data = pread(descriptor, length, offset)
            self.note(descriptor, len(data), offset)
            return data

        def counted_preadv(descriptor: int, buffers: Any, offset: int, flags: int = 0, /) -> int:
            count = preadv(descriptor, buffers, offset, flags)
            self.note(descriptor, count, offset)
            return count

        def here(descriptor: int) -> int:
            try:
                return os.lseek(descriptor, 0, os.SEEK_CUR)
            except OSError:
                return 0  # a pipe, which is no checkpoint

        def counted_read(descriptor: int, length: int, /) -> bytes:
            offset = here(descriptor)
            data = read(descriptor, length)
            self.note(descriptor, len(data), offset)
            return data

        def counted_readv(descriptor: int, buffers: Any, /) -> int:
            offset = here(descriptor)
            count = readv(descriptor, buffers)
            self.note(descriptor, count, offset)
            return count

        def counted_mmap(descriptor: int, length: int, *arguments: Any, **options: Any) -> Any:
            if descriptor >= 0:
                self.note(descriptor, length or os.fstat(descriptor).st_size, 0)
            return mapped(descriptor, length, *arguments, **options)

        replaced: Iterable[tuple[Any, str, Callable[..., Any]]] = (
            (os, "pread", counted_pread),
            (os, "preadv", counted_preadv),
            (os, "read", counted_read),
            (os, "readv", counted_readv),
            (mmap, "mmap", counted_mmap),
        )
        for module, name, function in replaced:
            setattr(module, name, function)


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Merge and count."""
    from harness.merge import merge, plan_merge

    plan = plan_merge(Path(request["base"]), Path(request["adapter"]))
    reads = Reads(Path(request["base"]).resolve())
    reads.wrap()
    report = merge(plan, Path(request["out"]))
    return {"bytes_read": reads.count, "bytes_decoded": getattr(report, "bytes_decoded", None)}
