"""Reading elements of checkpoint tensors into buffers that are used again.

Fresh large buffers cost more than reading into them: the kernel clears each page before it is written. One ``Reader`` per
side and per thread keeps a single buffer; a tensor it returns is valid until the next read.
"""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path
from typing import Protocol

import torch

from harness.merge.errors import InputChangedError, UnreadableInputError
from harness.merge.files.safetensors_file import DTYPE_BITS, TensorFile, TensorInfo
from harness.merge.write.values import TORCH_DTYPES


class Checkpointed(Protocol):
    """What base and merged checkpoint have in common here."""

    @property
    def shards(self) -> tuple[TensorFile, ...]:
        """The files."""

    @property
    def shard_of(self) -> Mapping[str, int]:
        """Which file holds a tensor."""

    def info(self, key: str) -> TensorInfo:
        """The header entry of a tensor."""


class Reader:
    """Reads parts of the tensors of one checkpoint; ``bytes_read`` counts them."""

    def __init__(self, checkpoint: Checkpointed) -> None:
        self._checkpoint = checkpoint
        self._open: dict[int, int] = {}
        self._buffer = bytearray()
        self.bytes_read = 0

    def close(self) -> None:
        """Close the files."""
        for descriptor in self._open.values():
            os.close(descriptor)
        self._open.clear()

    def _descriptor(self, shard: int) -> int:
        if shard not in self._open:
            path: Path = self._checkpoint.shards[shard].path
            try:
                self._open[shard] = os.open(path, os.O_RDONLY | os.O_CLOEXEC)
            except OSError as error:
                raise UnreadableInputError(f"{path.name} cannot be read: {error.strerror or error}.") from error
        return self._open[shard]

    def raw(self, key: str, start: int, stop: int) -> memoryview:
        """Return bytes ``[start, stop)`` of a tensor; valid until the next read.

        Raises:
            InputChangedError: the file became shorter.
            UnreadableInputError: reading failed.
        """
        shard = self._checkpoint.shard_of[key]
        size = stop - start
        if len(self._buffer) < size:
            self._buffer = bytearray(size)
        view = memoryview(self._buffer)[:size]
        position = self._checkpoint.info(key).start + start
        done = 0
        while done < size:
            try:
                count = os.preadv(self._descriptor(shard), [view[done:]], position + done)
            except OSError as error:
                name = self._checkpoint.shards[shard].name
                raise UnreadableInputError(f"{name} cannot be read: {error.strerror or error}.") from error
            if count == 0:
                raise InputChangedError(
                    f"{self._checkpoint.shards[shard].name} became shorter while it was being read."
                )
            done += count
        self.bytes_read += size
        return view

    def bytes(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Return bytes ``[start, stop)`` of a tensor as ``raw`` does, for torch."""
        return torch.frombuffer(self.raw(key, start, stop), dtype=torch.uint8)

    def elements(self, key: str, start: int, rows: int, columns: int) -> torch.Tensor:
        """Return ``rows * columns`` elements from ``start`` of a floating-point tensor, as (rows, columns) in its own dtype."""
        dtype = self._checkpoint.info(key).dtype
        size = DTYPE_BITS[dtype] // 8
        view = self.raw(key, start * size, (start + rows * columns) * size)
        return torch.frombuffer(view, dtype=TORCH_DTYPES[dtype]).reshape(rows, columns)
