"""Where the numbers of a slice come from: the base's rows, the merged checkpoint's rows, and the rows of a delta, read one way or another."""

from __future__ import annotations

from collections import OrderedDict
from contextlib import ExitStack

import torch

from harness.merge.auditing.merged import MergedCheckpoint
from harness.merge.auditing.reading import Reader
from harness.merge.auditing.slices import Slice
from harness.merge.deltas import delta_rows
from harness.merge.records import MergePlan, PairUse, TensorUse
from harness.merge.safetensors_file import TensorInfo
from harness.merge.sources import AdapterValues, Files, split_experts, tensor_of

CHUNK_ELEMENTS = 1 << 20
"""Elements compared at once: few enough to stay in the processor's cache between the steps of the comparison."""
KEPT_READINGS = 4


class Source:
    """Rows of slices. A tensor from ``base_rows`` or ``merged_rows`` is valid until the next call of the same method."""

    def __init__(self, plan: MergePlan, merged: MergedCheckpoint) -> None:
        self.plan = plan
        self.base_reader = Reader(plan.base)
        self.merged_reader = Reader(merged)
        self._open = ExitStack()
        self._files = self._open.enter_context(Files())
        self._values = AdapterValues(plan, self._files)
        self._readings: OrderedDict[tuple[PairUse, bool], tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def check_finite(self) -> None:
        """Refuse an adapter that holds NaN or infinity.

        Raises:
            NonFiniteError: names the module.
        """
        self._values.check_finite()

    def close(self) -> int:
        """Close all files; return how many bytes of checkpoints were read."""
        self._open.close()
        self.base_reader.close()
        self.merged_reader.close()
        return self.base_reader.bytes_read + self.merged_reader.bytes_read

    def chunks(self, item: Slice) -> list[tuple[int, int]]:
        """Return (first row, row after the last) of the pieces that a slice is compared in."""
        step = max(1, CHUNK_ELEMENTS // item.columns)
        return [(first, min(first + step, item.rows)) for first in range(0, item.rows, step)]

    def base_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return rows of the base, (last - first, columns), in its dtype."""
        return self.base_reader.elements(item.key, item.start + first * item.columns, last - first, item.columns)

    def merged_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return rows of the merged checkpoint, (last - first, columns), in its dtype."""
        start = item.merged_start + first * item.columns
        return self.merged_reader.elements(item.merged_key, start, last - first, item.columns)

    def delta_rows(
        self, item: Slice, first: int, last: int, *, use: PairUse | None = None, mixed_a: bool = False
    ) -> torch.Tensor:
        """Return rows of the slice's delta, (last - first, columns), float32, scaled.

        Args:
            item: the slice.
            first: its first row.
            last: the row after the last.
            use: read the pair in this way instead of as planned.
            mixed_a: take lora_A's rows as rank-major too, which no release of PEFT means.
        """
        planned = use or self.plan.uses[item.use]
        if isinstance(planned, TensorUse):
            return self._values.rows(planned, item.term, first, last, item.columns).float().mul_(planned.scaling)
        factors = self._values.factors(item.use) if use is None else self._read(use, mixed_a=mixed_a)
        return delta_rows(factors, planned, item.expert or 0, item.offset + first, item.offset + last)

    def replacement_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return the adapter's rows that stand instead of the base's, (last - first, columns), in the adapter's dtype."""
        use = self.plan.uses[item.use]
        assert isinstance(use, TensorUse)  # noqa: S101 - the plan makes replacements of tensors only
        return self._values.rows(use, item.term, first, last, item.columns)

    def exchanged(self, item: Slice, use: PairUse, half: int, first: int, last: int) -> torch.Tensor:
        """Return rows of the slice's delta with the gate and up halves, ``half`` rows each, exchanged."""
        factors = self._values.factors(item.use)
        rows = [(item.offset + row + half) % (2 * half) for row in (first, last - 1)]
        if rows[0] <= rows[1]:
            return delta_rows(factors, use, item.expert or 0, rows[0], rows[1] + 1)
        upper = delta_rows(factors, use, item.expert or 0, rows[0], 2 * half)
        return torch.cat([upper, delta_rows(factors, use, item.expert or 0, 0, rows[1] + 1)])

    def _read(self, use: PairUse, *, mixed_a: bool) -> tuple[torch.Tensor, torch.Tensor]:
        wanted = (use, mixed_a)
        if wanted not in self._readings:
            lora_a, lora_b = self._matrix(use.pair.lora_A), self._matrix(use.pair.lora_B)
            if mixed_a:
                count = use.num_experts or 1
                lora_a = lora_a.reshape(use.rank, count, -1).transpose(0, 1).reshape(lora_a.shape)
            self._readings[wanted] = split_experts(lora_a, lora_b, use)
            if len(self._readings) > KEPT_READINGS:
                self._readings.popitem(last=False)
        self._readings.move_to_end(wanted)
        return self._readings[wanted]

    def _matrix(self, info: TensorInfo) -> torch.Tensor:
        data = self._files.read(self.plan.adapter.file, info.start, info.stop)
        return tensor_of(data, info.dtype, info.shape).float()
