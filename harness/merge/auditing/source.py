"""Where the numbers of a slice come from: the base's rows, the merged checkpoint's rows, and the rows of a delta, read one way or another."""

from __future__ import annotations

import threading
from collections import OrderedDict
from contextlib import ExitStack

import torch

from harness.merge.adapter.packing import Factors
from harness.merge.auditing.expected import Workspace
from harness.merge.auditing.merged_checkpoint import MergedCheckpoint
from harness.merge.auditing.reading import Reader
from harness.merge.auditing.slices import Slice
from harness.merge.base.codecs import codecs
from harness.merge.base.weight import PlainSource, QuantisedSource
from harness.merge.errors import NonFiniteError
from harness.merge.plan.merge_plan import Contribution, MergePlan, PairContribution, TensorContribution, Term
from harness.merge.write.arithmetic import delta_rows
from harness.merge.write.values import AdapterValues, InputFiles, all_finite, split_experts

PIECE_ELEMENTS = 1 << 19
"""Elements compared at once: few enough to stay in the processor's cache between the steps of the comparison."""
KEPT_READINGS = 4


class AdapterReader:
    """The adapter's tensors, read once for all threads; NaN and infinity in them are refused by name."""

    def __init__(self, plan: MergePlan) -> None:
        self._plan = plan
        self._open = ExitStack()
        self._files = self._open.enter_context(InputFiles())
        self._values = AdapterValues(plan, self._files)
        self._readings: OrderedDict[tuple[PairContribution, bool], Factors] = OrderedDict()
        self._finite: set[int] = set()
        self._lock = threading.Lock()

    def close(self) -> None:
        """Close the files."""
        self._open.close()

    def factors(self, number: int) -> Factors:
        """Return the float32 factors of contribution ``number`` of the plan, by expert.

        Raises:
            NonFiniteError: they hold NaN or infinity.
        """
        with self._lock:
            factors = self._values.factors(number)
            if number not in self._finite:
                for role, factor in zip(("lora_A", "lora_B"), factors, strict=True):
                    _check_finite(factor, self._plan.contributions[number], role)
                self._finite.add(number)
            return factors

    def magnitude(self, contribution: PairContribution) -> torch.Tensor:
        """Return DoRA's magnitude vector in float32."""
        with self._lock:
            return _check_finite(self._values.magnitude(contribution), contribution, "lora_magnitude_vector")

    def rows(self, contribution: TensorContribution, term: Term, first: int, last: int, columns: int) -> torch.Tensor:
        """Return rows of a tensor that the adapter holds as it is, (last - first, columns), in its dtype."""
        with self._lock:
            return _check_finite(
                self._values.rows(contribution, term, first, last, columns), contribution, contribution.role
            )

    def misread(self, contribution: PairContribution, *, mixed_a: bool) -> Factors:
        """Return factors read in another way than planned; with ``mixed_a``, lora_A's rows too are taken as rank-major."""
        wanted = (contribution, mixed_a)
        with self._lock:
            if wanted not in self._readings:
                lora_a, lora_b = (
                    self._values.read(contribution.adapter, info).float()
                    for info in (contribution.pair.lora_A, contribution.pair.lora_B)
                )
                if mixed_a:
                    count = contribution.num_experts or 1
                    lora_a = lora_a.reshape(contribution.rank, count, -1).transpose(0, 1).reshape(lora_a.shape)
                self._readings[wanted] = split_experts(lora_a, lora_b, contribution)
                if len(self._readings) > KEPT_READINGS:
                    self._readings.popitem(last=False)
            self._readings.move_to_end(wanted)
            return self._readings[wanted]


def _check_finite(values: torch.Tensor, contribution: Contribution, role: str) -> torch.Tensor:
    if not all_finite(values):
        raise NonFiniteError(
            f"the adapter's {role} of {contribution.module} holds NaN or infinity.",
            "The training diverged or the file is damaged; there is nothing to compare with.",
        )
    return values


class Source:
    """Rows of slices, for one thread. What a method returns may lie in a buffer that its next call uses again."""

    def __init__(self, plan: MergePlan, merged: MergedCheckpoint, adapter: AdapterReader) -> None:
        self.plan = plan
        self.adapter = adapter
        self.base_reader = Reader(plan.base)
        self.merged_reader = Reader(merged)
        self.work = Workspace()

    def close(self) -> int:
        """Close all files; return how many bytes of checkpoints were read."""
        self.base_reader.close()
        self.merged_reader.close()
        return self.base_reader.bytes_read + self.merged_reader.bytes_read

    def pieces(self, item: Slice) -> list[tuple[int, int]]:
        """Return (first row, row after the last) of the pieces that a slice is compared in, of one size: a GEMM of a few rows adds in another order."""
        count = -(-item.rows * item.columns // PIECE_ELEMENTS)
        step = max(1, -(-item.rows // count))
        return [(first, min(first + step, item.rows)) for first in range(0, item.rows, step)]

    def values(self, source: PlainSource | QuantisedSource, start: int, rows: int, columns: int) -> torch.Tensor:
        """Return ``rows`` x ``columns`` elements of a weight of the base from element ``start`` on: as stored, or decoded to float32."""
        if isinstance(source, PlainSource):
            return self.base_reader.elements(source.key, start, rows, columns)
        width, stop = source.shape[-1], start + rows * columns
        first, last = start // width, -(-stop // width)
        decoded = codecs()[source.codec].rows(source, self._part, first, last)
        return decoded.reshape(-1)[start - first * width : stop - first * width].reshape(rows, columns)

    def _part(self, key: str, start: int, stop: int) -> bytearray:
        return bytearray(self.base_reader.raw(key, start, stop))

    def base_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return what the delta goes onto, (last - first, columns): the base's rows, or those that the adapter puts in their place."""
        if item.base_replacement is not None:
            return self._replacement(item, item.base_replacement, first, last)
        assert item.source is not None  # noqa: S101 - the plan replaces what has no source
        return self.values(item.source, item.start + first * item.columns, last - first, item.columns)

    def merged_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return rows of the merged checkpoint, (last - first, columns), in its dtype."""
        start = item.merged_start + first * item.columns
        return self.merged_reader.elements(item.merged_key, start, last - first, item.columns)

    def delta_rows(
        self, item: Slice, first: int, last: int, *, contribution: PairContribution | None = None, mixed_a: bool = False
    ) -> torch.Tensor:
        """Return rows of the slice's delta, or of the sum of several adapters', (last - first, columns), float32, scaled.

        Args:
            item: the slice.
            first: its first row.
            last: the row after the last.
            contribution: read the (first) pair in this way instead of as planned.
            mixed_a: take lora_A's rows as rank-major too, which no release of PEFT means.
        """
        if contribution is None:
            total = self._planned(item.term, first, last, item.columns)
        else:
            factors = self.adapter.misread(contribution, mixed_a=mixed_a)
            total = delta_rows(factors, contribution, item.expert or 0, item.offset + first, item.offset + last)
        for term in item.others:
            total += self._planned(term, first, last, item.columns)
        return total

    def _planned(self, term: Term, first: int, last: int, columns: int) -> torch.Tensor:
        """Return rows of one term, scaled, in memory of their own."""
        contribution = self.plan.contributions[term.contribution]
        if isinstance(contribution, TensorContribution):
            return self.adapter.rows(contribution, term, first, last, columns).float() * contribution.scaling
        factors = self.adapter.factors(term.contribution)
        return delta_rows(factors, contribution, term.expert or 0, term.offset + first, term.offset + last)

    def change_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return what ``delta_rows`` does, as planned, in a buffer."""
        contribution = self.plan.contributions[item.contribution]
        if isinstance(contribution, TensorContribution) or item.others:
            return self.delta_rows(item, first, last)
        factors = self.adapter.factors(item.contribution)
        return self.work.delta(factors, contribution, item.expert or 0, item.offset + first, last - first, item.columns)

    def right_rows(self, item: Slice, first: int, base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return ``base`` (the slice's rows from ``first`` on) plus the delta, rounded once to ``dtype``."""
        contribution = self.plan.contributions[item.contribution]
        if isinstance(contribution, TensorContribution) or item.others:
            return self.work.once(base, self.delta_rows(item, first, first + base.shape[0]), dtype)
        factors = self.adapter.factors(item.contribution)
        return self.work.added(base, factors, contribution, item.expert or 0, item.offset + first, dtype)

    def replacement_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return the adapter's rows that stand instead of the base's, (last - first, columns), in the adapter's dtype."""
        return self._replacement(item, item.term, first, last)

    def _replacement(self, item: Slice, term: Term, first: int, last: int) -> torch.Tensor:
        contribution = self.plan.contributions[term.contribution]
        assert isinstance(contribution, TensorContribution)  # noqa: S101 - the plan makes replacements of tensors only
        return self.adapter.rows(contribution, term, first, last, item.columns)

    def exchanged(self, item: Slice, contribution: PairContribution, half: int, first: int, last: int) -> torch.Tensor:
        """Return rows of the slice's delta with the gate and up halves, ``half`` rows each, exchanged."""
        factors = self.adapter.factors(item.contribution)
        rows = [(item.offset + row + half) % (2 * half) for row in (first, last - 1)]
        if rows[0] <= rows[1]:
            return delta_rows(factors, contribution, item.expert or 0, rows[0], rows[1] + 1)
        upper = delta_rows(factors, contribution, item.expert or 0, rows[0], 2 * half)
        return torch.cat([upper, delta_rows(factors, contribution, item.expert or 0, 0, rows[1] + 1)])
