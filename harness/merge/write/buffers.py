"""Memory that one thread works in, kept from piece to piece.

Fresh memory costs page faults, as much time as the copy itself. Buffers have roles (``base``, ``sum``, ``out``), grow
to the largest piece and are never shared between threads. With a CUDA device those that files are read into and written
from are pinned, so that transfers run beside the arithmetic.
"""

from __future__ import annotations

import ctypes
from contextlib import AbstractContextManager, nullcontext
from math import prod

import torch

WORD = 8
"""Bytes of the largest number."""


class _Memory:
    """Host memory as bytes that files are read into, and as numbers of each dtype that was asked for."""

    def __init__(self, data: torch.Tensor) -> None:
        self.data = data
        # A tensor offers no buffer to Python without numpy; its memory lives as long as both are kept here.
        self.view = memoryview((ctypes.c_ubyte * data.numel()).from_address(data.data_ptr())).cast("B")
        self._numbers: dict[torch.dtype, torch.Tensor] = {}

    def numbers(self, dtype: torch.dtype) -> torch.Tensor:
        """Return all of it as one vector of a dtype."""
        if dtype not in self._numbers:
            self._numbers[dtype] = self.data.view(dtype)
        return self._numbers[dtype]


class Buffers:
    """The buffers of one thread.

    ``bytes_of(role, size)`` and ``tensor(role, dtype, …)`` give the same memory, as bytes on the host and as numbers:
    what is read into the one is seen in the other. ``work(…)`` gives memory on ``device``, which no file is read into.
    """

    def __init__(self, device: torch.device) -> None:
        self.device = device
        self._stream = torch.cuda.Stream(device) if device.type == "cuda" else None
        self._host: dict[str, _Memory] = {}
        self._work: dict[str, torch.Tensor] = {}

    def _buffer(self, role: str, size: int) -> _Memory:
        found = self._host.get(role)
        if found is None or found.data.numel() < size:
            # Whole words, so that all of it can be seen as numbers of any size.
            data = torch.empty(-(-size // WORD) * WORD, dtype=torch.uint8, pin_memory=self.device.type == "cuda")
            found = self._host[role] = _Memory(data)
        return found

    def stream(self) -> AbstractContextManager[object]:
        """Return a context in which this thread's transfers and arithmetic wait for no other thread's: on a GPU, a
        stream of its own.
        """
        return nullcontext() if self._stream is None else torch.cuda.stream(self._stream)

    def bytes_of(self, role: str, size: int) -> memoryview:
        """Return ``size`` bytes of host memory; what they hold is whatever was there."""
        return self._buffer(role, size).view[:size]

    def tensor(self, role: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Return a tensor of this shape over the first of the same bytes."""
        count = prod(shape)
        return self._buffer(role, count * dtype.itemsize).numbers(dtype)[:count].view(shape)

    def work(self, role: str, dtype: torch.dtype, *shape: int) -> torch.Tensor:
        """Return a tensor of this shape on the device; what it holds is whatever was there."""
        size = prod(shape) * dtype.itemsize
        found = self._work.get(role)
        if found is None or found.numel() < size:
            found = self._work[role] = torch.empty(size, dtype=torch.uint8, device=self.device)
        return found[:size].view(dtype).view(shape)
