"""Memory that one thread works in, kept from piece to piece: fresh memory costs page faults, as much time as the copy itself.

Buffers have roles (``base``, ``sum``, ``out``), grow to the largest piece and are never shared between threads. With a CUDA device those that
files are read into and written from are pinned, so that transfers run beside the arithmetic.
"""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext

import torch


class Buffers:
    """The buffers of one thread.

    ``bytes_of(role, size)`` and ``tensor(role, dtype, rows, columns)`` give the same memory, as bytes on the host and as numbers: what is read into
    the one is seen in the other. ``work(…)`` gives memory on ``device``, which no file is read into.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._host: dict[str, tuple[torch.Tensor, memoryview]] = {}
        self._work: dict[str, torch.Tensor] = {}

    def _buffer(self, role: str, size: int) -> tuple[torch.Tensor, memoryview]:
        found = self._host.get(role)
        if found is None or found[0].numel() < size:
            tensor = torch.empty(size, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            # A tensor offers no buffer to Python without numpy; its memory lives as long as the pair of them is kept here.
            view = memoryview((ctypes.c_ubyte * size).from_address(tensor.data_ptr())).cast("B")
            found = self._host[role] = (tensor, view)
        return found

    def stream(self) -> AbstractContextManager[object]:
        """Return a context in which this thread's transfers and arithmetic wait for no other thread's: on a GPU, a stream of its own."""
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def bytes_of(self, role: str, size: int) -> memoryview:
        """Return ``size`` bytes of host memory; what they hold is whatever was there."""
        return self._buffer(role, size)[1][:size]

    def tensor(self, role: str, dtype: torch.dtype, rows: int, columns: int) -> torch.Tensor:
        """Return a (rows, columns) tensor over the first of the same bytes."""
        size = rows * columns * dtype.itemsize
        return self._buffer(role, size)[0][:size].view(dtype).view(rows, columns)

    def work(self, role: str, dtype: torch.dtype, rows: int, columns: int) -> torch.Tensor:
        """Return a (rows, columns) tensor on the device; what it holds is whatever was there."""
        size = rows * columns * dtype.itemsize
        found = self._work.get(role)
        if found is None or found.numel() < size:
            found = self._work[role] = torch.empty(size, dtype=torch.uint8, device=self.device)
        return found[:size].view(dtype).view(rows, columns)
