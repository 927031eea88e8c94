"""Where the numbers of a slice come from: rows of the base, of the merged checkpoint, and of a delta, however read."""

from __future__ import annotations

import torch

from harness.merge.auditing.expected import ExpectedValues
from harness.merge.auditing.inputs import AdapterReader, Checkpoints
from harness.merge.auditing.slices import Slice
from harness.merge.base.weight import PlainSource, QuantisedSource
from harness.merge.plan.merge_plan import MergePlan, PairContribution, TensorContribution, Term
from harness.merge.write.arithmetic import delta_rows
from harness.merge.write.buffers import Buffers

PIECE_ELEMENTS = 1 << 19
"""Elements compared at once: few enough to stay in the processor's cache between the steps of the comparison."""


class Source:
    """Rows of slices, for one thread. What a method returns may lie in a buffer that its next call uses again."""

    def __init__(self, plan: MergePlan, checkpoints: Checkpoints, adapter: AdapterReader) -> None:
        self.plan = plan
        self.adapter = adapter
        self._checkpoints = checkpoints
        self._buffers = Buffers(torch.device("cpu"))
        self.expected = ExpectedValues(self._buffers)

    def pieces(self, item: Slice) -> list[tuple[int, int]]:
        """Return (first row, row after the last) of the pieces that a slice is compared in.

        They are of one size, because a GEMM of a few rows adds in another order.
        """
        count = -(-item.rows * item.columns // PIECE_ELEMENTS)
        step = max(1, -(-item.rows // count))
        return [(first, min(first + step, item.rows)) for first in range(0, item.rows, step)]

    def values(self, source: PlainSource | QuantisedSource, start: int, rows: int, columns: int) -> torch.Tensor:
        """Return ``rows`` x ``columns`` elements of a weight of the base from element ``start`` on, decoded where
        quantised.
        """
        return self._checkpoints.base.rows(self._buffers, source, start, rows, columns)

    def base_bytes(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Return bytes ``[start, stop)`` of a tensor of the base, uint8."""
        return self._checkpoints.base.stored.raw(self._buffers, key, start, stop)

    def merged_bytes(self, key: str, start: int, stop: int) -> torch.Tensor:
        """Return bytes ``[start, stop)`` of a tensor of the merged checkpoint, uint8."""
        return self._checkpoints.merged.raw(self._buffers, key, start, stop)

    def merged_values(self, key: str, start: int, rows: int, columns: int) -> torch.Tensor:
        """Return ``rows`` x ``columns`` elements of a tensor of the merged checkpoint from element ``start`` on."""
        return self._checkpoints.merged.rows(self._buffers, key, start, rows, columns)

    def base_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return what the delta goes onto, (last - first, columns): the base's rows, or the adapter's instead."""
        if item.base_replacement is not None:
            return self._replacement(item, item.base_replacement, first, last)
        assert item.source is not None  # noqa: S101 - the plan replaces what has no source
        return self.values(item.source, item.start + first * item.columns, last - first, item.columns)

    def merged_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return rows of the merged checkpoint, (last - first, columns), in its dtype."""
        start = item.merged_start + first * item.columns
        return self.merged_values(item.merged_key, start, last - first, item.columns)

    def delta_rows(
        self, item: Slice, first: int, last: int, *, contribution: PairContribution | None = None, mixed_a: bool = False
    ) -> torch.Tensor:
        """Return rows of the slice's delta, or of the sum of several adapters', (last - first, columns), float32,
        scaled.

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
        return self.expected.delta(
            factors, contribution, item.expert or 0, item.offset + first, last - first, item.columns
        )

    def right_rows(self, item: Slice, first: int, base: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return ``base`` (the slice's rows from ``first`` on) plus the delta, rounded once to ``dtype``."""
        contribution = self.plan.contributions[item.contribution]
        if isinstance(contribution, TensorContribution) or item.others:
            return self.expected.once(base, self.delta_rows(item, first, first + base.shape[0]), dtype)
        factors = self.adapter.factors(item.contribution)
        return self.expected.added(base, factors, contribution, item.expert or 0, item.offset + first, dtype)

    def replacement_rows(self, item: Slice, first: int, last: int) -> torch.Tensor:
        """Return the adapter's rows that stand instead of the base's, (last - first, columns), in its dtype."""
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
