"""Where values come from while a merge runs: the base's tensors, plain or decoded, and the adapters'.

Files are opened when first needed and checked against what was planned with; nothing larger than one expert's factors, or the rows
asked for, is held.
"""

from __future__ import annotations

import math
import os
from collections import OrderedDict
from threading import RLock
from types import TracebackType
from typing import Self

import torch

from harness.merge.adapter.packing import Factors, split_by_expert
from harness.merge.base.codecs import codecs
from harness.merge.base.weight import PlainSource, QuantisedSource
from harness.merge.errors import InputChangedError, NonFiniteError, UnreadableInputError
from harness.merge.files.copying import CHUNK
from harness.merge.files.safetensors_file import TensorFile, TensorInfo, read_header, read_into, read_range
from harness.merge.plan.merge_plan import Contribution, MergePlan, PairContribution, PlanRow, TensorContribution, Term
from harness.merge.write.buffers import Buffers
from harness.merge.write.threads import Lanes, share_out

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CACHED_PAIRS = 4
"""Pairs kept decoded: those of one layer's experts, which the rows of a layer take turns to use."""


def tensor_of(data: bytearray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor over ``data``, which it shares."""
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape)


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity.

    Either makes the sum non-finite, and a sum is several times quicker than looking at each element; only where the sum
    overflows are the elements looked at.
    """
    return math.isfinite(tensor.sum().item()) or bool(torch.isfinite(tensor).all())


class InputFiles:
    """Descriptors of input files, opened once, proved to be those that were planned with, closed together; shared by threads."""

    def __init__(self) -> None:
        self._descriptors: dict[str, int] = {}
        self._lock = RLock()

    def __enter__(self) -> Self:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        for descriptor in self._descriptors.values():
            os.close(descriptor)
        self._descriptors.clear()

    def of(self, file: TensorFile) -> int:
        """Return a descriptor of a file.

        Raises:
            InputChangedError: it is no longer the file that was planned with.
            UnreadableInputError: it cannot be opened.
        """
        key = str(file.path)
        with self._lock:
            if key not in self._descriptors:
                now = read_header(file.path, name=file.name)
                if (now.size, now.header_sha256) != (file.size, file.header_sha256):
                    raise InputChangedError(
                        f"{file.name} is no longer the file that was planned with.", "Plan and merge again."
                    )
                try:
                    self._descriptors[key] = os.open(file.path, os.O_RDONLY | os.O_CLOEXEC)
                except OSError as error:
                    raise UnreadableInputError(f"{file.name} cannot be read: {error.strerror or error}.") from error
            return self._descriptors[key]

    def read_into(self, file: TensorFile, start: int, view: memoryview) -> None:
        """Fill ``view`` with the bytes of a file from ``start`` on."""
        read_into(self.of(file), view, start, what=file.name)

    def read(self, file: TensorFile, start: int, stop: int) -> bytearray:
        """Return the bytes ``[start, stop)`` of a file."""
        return read_range(self.of(file), start, stop, what=file.name)


class BaseValues:
    """Rows of the base's weights."""

    def __init__(self, plan: MergePlan, files: InputFiles) -> None:
        self._plan = plan
        self._files = files

    def read_part(self, key: str, start: int, stop: int) -> bytearray:
        """Return bytes ``[start, stop)`` of the data of the base's tensor ``key``."""
        base = self._plan.base
        info = base.info(key)
        return self._files.read(base.shards[base.shard_of[key]], info.start + start, info.start + stop)

    def rows(self, buffers: Buffers, row: PlanRow, start: int, rows: int, columns: int) -> torch.Tensor | None:
        """Return ``rows`` x ``columns`` elements of a row's source from element ``start`` on; None where the row has no source.

        Values of a plain tensor are as stored and lie in the buffer ``base`` of ``buffers``, decoded ones are float32 and do not.
        """
        if row.source is None:
            return None
        if isinstance(row.source, PlainSource):
            base = self._plan.base
            info = base.info(row.source.key)
            dtype = TORCH_DTYPES[info.dtype]
            view = buffers.bytes_of("base", rows * columns * dtype.itemsize)
            self._files.read_into(base.shards[base.shard_of[row.source.key]], info.start + start * dtype.itemsize, view)
            return buffers.tensor("base", dtype, rows, columns)
        return self._decoded(row.source, start, rows, columns)

    def _decoded(self, quantised: QuantisedSource, start: int, rows: int, columns: int) -> torch.Tensor:
        width = quantised.shape[-1]
        first, last = start // width, -(-(start + rows * columns) // width)
        values = codecs()[quantised.codec].rows(quantised, self.read_part, first, last)
        return values.reshape(-1)[start - first * width :][: rows * columns].reshape(rows, columns)


class AdapterValues:
    """The adapters' tensors, read when first needed; shared by threads."""

    def __init__(self, plan: MergePlan, files: InputFiles) -> None:
        self._plan = plan
        self._files = files
        self._kept: OrderedDict[int, Factors] = OrderedDict()
        self._lock = RLock()

    def read(self, adapter: int, info: TensorInfo) -> torch.Tensor:
        """Return a tensor of an adapter as it is stored."""
        data = self._files.read(self._plan.parts[adapter].adapter.file, info.start, info.stop)
        return tensor_of(data, info.dtype, info.shape)

    def check_finite(self, threads: int = 1) -> None:
        """Read every tensor that is used once and refuse NaN and infinity.

        Raises:
            NonFiniteError: names a module that has one.
        """
        pieces = [
            (contribution, role, info, start)
            for contribution in self._plan.contributions
            for role, info in contribution.tensors.items()
            for start in range(info.start, info.stop, CHUNK)
        ]
        share_out(Lanes([iter(pieces)], 1), self._check_piece, lambda: None, threads=threads, poll=lambda: None)

    def _check_piece(self, _state: None, piece: tuple[Contribution, str, TensorInfo, int]) -> None:
        contribution, role, info, start = piece
        file = self._plan.parts[contribution.adapter].adapter.file
        data = self._files.read(file, start, min(start + CHUNK, info.stop))
        if not all_finite(torch.frombuffer(data, dtype=TORCH_DTYPES[info.dtype])):
            raise NonFiniteError(
                f"the adapter's {role} of {contribution.module} holds NaN or infinity.",
                "The training diverged or the file is damaged; nothing was merged.",
            )

    def factors(self, number: int) -> Factors:
        """Return the factors of contribution ``number`` of the plan, which is a pair, by expert in float32."""
        with self._lock:
            if number not in self._kept:
                contribution = self._plan.contributions[number]
                assert isinstance(contribution, PairContribution)  # noqa: S101 - the caller looked
                first, second = (
                    self.read(contribution.adapter, contribution.pair.lora_A),
                    self.read(contribution.adapter, contribution.pair.lora_B),
                )
                self._kept[number] = split_experts(first.float(), second.float(), contribution)
                if len(self._kept) > CACHED_PAIRS:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(number)
            return self._kept[number]

    def magnitude(self, contribution: PairContribution) -> torch.Tensor:
        """Return DoRA's magnitude vector (out_features,) in float32."""
        assert contribution.magnitude is not None  # noqa: S101 - the caller looked
        return self.read(contribution.adapter, contribution.magnitude).float()

    def rows(self, contribution: TensorContribution, term: Term, first: int, last: int, columns: int) -> torch.Tensor:
        """Return rows ``first:last`` of a region as a tensor of the adapter has them, (last - first, columns), as stored there."""
        info = contribution.info
        size = TORCH_DTYPES[info.dtype].itemsize
        # A (num_experts, rows, columns) tensor is num_experts times rows rows.
        skipped = (term.expert or 0) * (info.shape[1] if term.expert is not None else 0) + term.offset
        start = info.start + (skipped + first) * columns * size
        data = self._files.read(
            self._plan.parts[contribution.adapter].adapter.file, start, start + (last - first) * columns * size
        )
        return tensor_of(data, info.dtype, (last - first, columns))


def split_experts(lora_a: torch.Tensor, lora_b: torch.Tensor, contribution: PairContribution) -> Factors:
    """Return the factors of a pair by expert, in the dtypes given; anything but a fused parameter counts as one expert."""
    return split_by_expert(
        lora_a,
        lora_b,
        num_experts=contribution.num_experts or 1,
        rank=contribution.rank,
        packing="grouped_by_expert" if contribution.grouped_by_expert else "rank_major",
    )
