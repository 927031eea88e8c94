"""Values of a checkpoint's tensors while a merge or an audit runs: plain ones as they are stored, quantised ones
decoded.

Nothing larger than the rows asked for is held.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol

import torch

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.codecs import codecs
from harness.merge.base.weight import PlainSource, QuantisedSource
from harness.merge.files.input_files import InputFiles
from harness.merge.files.safetensors_file import TensorFile
from harness.merge.write.buffers import Buffers
from harness.merge.write.tensors import TORCH_DTYPES


class Sharded(Protocol):
    """What a base and somebody's merged checkpoint have in common."""

    @property
    def shards(self) -> tuple[TensorFile, ...]:
        """The files."""

    @property
    def shard_of(self) -> Mapping[str, int]:
        """Which file holds a tensor."""


class StoredTensors:
    """The tensors of one checkpoint as they are stored; shared by threads.

    What a method returns lies in the buffer ``role`` of the caller's buffers, until the next call with the same ones.
    """

    def __init__(self, checkpoint: Sharded, files: InputFiles, role: str) -> None:
        self._checkpoint = checkpoint
        self._files = files
        self._role = role

    def raw(self, buffers: Buffers, key: str, start: int, stop: int) -> torch.Tensor:
        """Return bytes ``[start, stop)`` of a tensor's data, uint8."""
        shard = self._shard(key)
        self._files.read_into(shard, shard.tensors[key].start + start, buffers.bytes_of(self._role, stop - start))
        return buffers.tensor(self._role, torch.uint8, stop - start)

    def rows(self, buffers: Buffers, key: str, start: int, rows: int, columns: int) -> torch.Tensor:
        """Return elements of a floating-point tensor from element ``start`` on, (rows, columns) in its dtype."""
        shard = self._shard(key)
        info = shard.tensors[key]
        dtype = TORCH_DTYPES[info.dtype]
        size = dtype.itemsize
        view = buffers.bytes_of(self._role, rows * columns * size)
        self._files.read_into(shard, info.start + start * size, view)
        return buffers.tensor(self._role, dtype, rows, columns)

    def _shard(self, key: str) -> TensorFile:
        return self._checkpoint.shards[self._checkpoint.shard_of[key]]


class BaseValues:
    """The values of a base's weights; shared by threads. ``stored`` gives its tensors as they are."""

    def __init__(self, base: Checkpoint, files: InputFiles) -> None:
        self._base = base
        self._files = files
        self.stored = StoredTensors(base, files, "base")

    def rows(
        self, buffers: Buffers, source: PlainSource | QuantisedSource, start: int, rows: int, columns: int
    ) -> torch.Tensor:
        """Return ``rows * columns`` elements of a weight from element ``start`` on, (rows, columns).

        A plain weight's values are as stored and lie in the buffer ``base``. Decoded ones are float32 and do not.
        """
        if isinstance(source, PlainSource):
            return self.stored.rows(buffers, source.key, start, rows, columns)
        width, stop = source.shape[-1], start + rows * columns
        first, last = start // width, -(-stop // width)
        decoded = codecs()[source.codec].rows(source, self._read, first, last)
        return decoded.reshape(-1)[start - first * width : stop - first * width].reshape(rows, columns)

    def _read(self, key: str, start: int, stop: int) -> bytearray:
        """Return bytes ``[start, stop)`` of the data of the base's tensor ``key``."""
        info = self._base.info(key)
        return self._files.read(self._base.shards[self._base.shard_of[key]], info.start + start, info.start + stop)
