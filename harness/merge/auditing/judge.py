"""The verdict on one tensor of the checkpoint that a right merge would have written.

No tensor is held whole: a slice is compared in pieces, and only a slice that fails is read again to find out why.
"""

from __future__ import annotations

import threading
from collections.abc import Mapping, Sequence
from math import prod

import torch

from harness.merge.auditing.diagnosis import Doctor
from harness.merge.auditing.dora import judge_dora
from harness.merge.auditing.equality import NON_FINITE, broken, decoded_alike, identical
from harness.merge.auditing.fingerprints import Fingerprints
from harness.merge.auditing.inputs import AdapterReader, Checkpoints
from harness.merge.auditing.measure import measure
from harness.merge.auditing.merged_checkpoint import MergedCheckpoint
from harness.merge.auditing.pairing import Pairer, Pairing
from harness.merge.auditing.replaced import Replaced
from harness.merge.auditing.slice_verdicts import Found, row_of, summed
from harness.merge.auditing.slices import Gap, Siblings, Slice, gaps_of, slices_of
from harness.merge.auditing.source import PIECE_ELEMENTS, Source
from harness.merge.auditing.tensor_verdict import TensorVerdict, Verdict
from harness.merge.base.weight import PlainSource, QuantisedSource
from harness.merge.plan.merge_plan import MergePlan, PairContribution, PlanRow
from harness.merge.plan.output_shards import Output
from harness.merge.write.tensors import TORCH_DTYPES

PIECE_BYTES = 1 << 20


class Judge:
    """Compares tensors, on any number of threads; holds what the comparisons share."""

    def __init__(
        self,
        plan: MergePlan,
        wanted: Mapping[str, Output],
        merged: MergedCheckpoint,
        checkpoints: Checkpoints,
        adapter: AdapterReader,
    ) -> None:
        self.plan = plan
        self.wanted = wanted
        self.merged = merged
        self.adapter = adapter
        self.checkpoints = checkpoints
        self.pairer = Pairer(plan.base, {key: output.shape for key, output in wanted.items()}, merged)
        self.pairings: dict[str, Pairing] = {key: self.pairer.pair(key) for key in wanted}
        self.siblings = Siblings(plan, (item for row in plan.rows for item in slices_of(row, self.pairings[row.key])))
        self.fingerprints = Fingerprints(self.siblings)
        self._local = threading.local()

    @property
    def source(self) -> Source:
        """What this thread reads with."""
        if not hasattr(self._local, "source"):
            self._local.source = Source(self.plan, self.checkpoints, self.adapter)
        source: Source = self._local.source
        return source

    def verdicts(self, keys: Sequence[str]) -> list[TensorVerdict]:
        """Return the verdicts on some tensors, in order."""
        # What a diagnosis remembers stays within a job, so that the report does not depend on which thread did what.
        self._local.doctor = Doctor(self.source, self.siblings, self.fingerprints)
        return [self.verdict(key) for key in keys]

    def verdict(self, key: str) -> TensorVerdict:
        """Return the verdict on one tensor."""
        output, pairing = self.wanted[key], self.pairings[key]
        covered, expert = output.row is not None and bool(output.row.regions), output.row.expert if output.row else None
        dtypes = {self.merged.info(name).dtype for name in pairing.keys} - {output.dtype}
        strange = dtypes - TORCH_DTYPES.keys() if output.row is not None else set()
        if (not pairing.found or strange) and (form := self._as_in_base(output)) is not None:
            detail = f"still the base{form}" if covered else None
            return row_of(key, "untouched" if covered else "same", pairing, detail=detail, expert=expert)
        if not pairing.found:
            absent: Verdict = "missing" if pairing.problem is None else "wrong"
            detail = pairing.problem or "absent"
            return row_of(key, absent if covered else "changed", pairing, detail=detail, expert=expert)
        if strange:
            detail = f"stored as {', '.join(sorted(strange))}, which cannot be compared"
            return row_of(key, "wrong" if covered else "changed", pairing, detail=detail, dtypes=dtypes, expert=expert)
        if output.row is None or not covered:
            runs = (
                Gap(start=piece.start, count=piece.count, merged_key=piece.merged_key, merged_start=piece.merged_start)
                for piece in pairing.pieces
            )
            problem = next(filter(None, (self._unlike(output, run) for run in runs)), None)
            kept: Verdict = "same" if problem is None else "changed"
            return row_of(key, kept, pairing, detail=problem, dtypes=dtypes, expert=expert)
        found = [self._slice(output.row, item) for item in slices_of(output.row, pairing)]
        found += [
            Found(number=None, verdict="wrong", detail="elements that no delta reaches are not the base's")
            for gap in gaps_of(output.row, pairing)
            if self._unlike(output, gap) is not None
        ]
        verdict, detail = summed(found)
        return row_of(key, verdict, pairing, detail=detail, dtypes=dtypes, expert=expert, found=found)

    def _slice(self, row: PlanRow, item: Slice) -> Found:
        contribution = self.plan.contributions[item.contribution]
        if item.replaced:
            return self._replaced(row, item)
        if item.base_replacement is not None and self._still_the_base(item):
            return Found(number=item.number, verdict="untouched", detail="still the base")
        if isinstance(contribution, PairContribution) and contribution.magnitude is not None:
            return judge_dora(self.source, item, contribution)
        return self._sum(row, item)

    def _sum(self, row: PlanRow, item: Slice) -> Found:
        """Judge base + delta."""
        source = self.source
        tally, dtype = measure(
            source.pieces(item),
            lambda first, last: source.base_rows(item, first, last),
            lambda first, last: source.merged_rows(item, first, last),
            lambda first, last: source.change_rows(item, first, last),
            work=source.expected,
            right=lambda first, base, dtype: source.right_rows(item, first, base, dtype),
        )
        scale: float | None = None
        if tally.moved and tally.applied(dtype) is None and self._decoded_only(row, item):
            tally, _ = measure(
                source.pieces(item),
                lambda first, last: source.base_rows(item, first, last),
                lambda first, last: source.base_rows(item, first, last).to(dtype),
                lambda first, last: source.delta_rows(item, first, last),
            )
        if not tally.moved:
            verdict, detail = tally.unmoved()
            if item.base_replacement is not None and verdict == "untouched":
                detail = "the tensor that the adapter holds, without the delta on top"
        elif tally.nonzero and (how := tally.applied(dtype)) is not None:
            verdict, detail = "applied", how
        elif self._through_load(row, item, dtype):
            verdict, detail = "applied", "low-precision"
        else:
            seen = self._local.doctor.diagnose(item)
            verdict, detail, scale = seen.verdict, seen.detail, seen.scale
        return Found(
            number=item.number,
            verdict=verdict,
            detail=detail,
            scale=scale,
            exact=tally.exact,
            elements=tally.elements,
        )

    def _decoded_only(self, row: PlanRow, item: Slice) -> bool:
        """Return whether a slice of a quantised weight holds what that decodes to, in somebody else's arithmetic."""
        if not isinstance(item.source, QuantisedSource) or item.base_replacement is not None:
            return False
        source, load = self.source, TORCH_DTYPES[row.dtype]
        return all(
            decoded_alike(source.base_rows(item, *rows), source.merged_rows(item, *rows), load)
            for rows in source.pieces(item)
        )

    def _through_load(self, row: PlanRow, item: Slice, dtype: torch.dtype) -> bool:
        """Return whether what the delta went onto was first rounded to the dtype that a model is loaded in, and kept in
        a wider one.
        """
        load = TORCH_DTYPES[row.dtype]
        if load == dtype or (item.base_replacement is None and isinstance(item.source, PlainSource)):
            return False
        source = self.source
        tally, _ = measure(
            source.pieces(item),
            lambda first, last: source.base_rows(item, first, last).to(load),
            lambda first, last: source.merged_rows(item, first, last),
            lambda first, last: source.delta_rows(item, first, last),
        )
        return tally.moved and tally.nonzero and tally.applied(dtype) is not None

    def _replaced(self, row: PlanRow, item: Slice) -> Found:
        """Judge rows that the adapter holds whole: they are its own, or the base's, or neither.

        Nothing is near enough but equal.
        """
        seen, source = Replaced(load=TORCH_DTYPES[row.dtype]), self.source
        for first, last in source.pieces(item):
            base = None
            if item.source is not None:
                base = source.values(item.source, item.start + first * item.columns, last - first, item.columns)
            seen.add(base, source.merged_rows(item, first, last), source.replacement_rows(item, first, last))
        verdict, detail = seen.verdict()
        return Found(number=item.number, verdict=verdict, detail=detail, exact=seen.exact, elements=seen.elements)

    def _still_the_base(self, item: Slice) -> bool:
        """Return whether a slice whose base the adapter replaces holds the base's own values all the same, and not the
        adapter's.
        """
        same = True
        for first, last in self.source.pieces(item):
            if item.source is None:
                return False
            merged = self.source.merged_rows(item, first, last)
            base = self.source.values(item.source, item.start + first * item.columns, last - first, item.columns)
            if not torch.equal(merged, base.to(merged.dtype)):
                return False
            same = same and torch.equal(merged, self.source.base_rows(item, first, last).to(merged.dtype))
        return not same

    def _as_in_base(self, output: Output) -> str | None:
        """Return how a tensor whose form a right merge changes still has the base's own form and bytes: quantised, or
        its old size.
        """
        row, base = output.row, self.plan.base
        keys = row.source.keys if row is not None and row.source is not None else (output.key,)
        quantised = row is not None and isinstance(row.source, QuantisedSource)
        if not quantised and (output.key not in base or base.info(output.key).shape == output.shape):
            return None
        for key in keys:
            if key not in self.merged:
                return None
            ours, theirs = base.info(key), self.merged.info(key)
            if (ours.dtype, ours.shape) != (theirs.dtype, theirs.shape) or not self._same_bytes(
                key, key, 0, 0, ours.nbytes
            ):
                return None
        return ", quantised" if quantised else ", not resized"

    def _unlike(self, output: Output, run: Gap) -> str | None:
        """Return None where a run of elements is the base's (byte for byte, or value for value where it is decoded or
        in another float dtype), else what is wrong.
        """
        other = "not the base's values"
        source = PlainSource(key=output.key) if output.row is None else output.row.source
        assert source is not None  # noqa: S101 - what has no source is replaced in full
        ours = self.plan.base.info(source.key).dtype if isinstance(source, PlainSource) else output.dtype
        theirs = self.merged.info(run.merged_key)
        if isinstance(source, PlainSource) and ours == theirs.dtype:
            # Sub-byte dtypes are only ever compared whole, so that no run starts inside a byte.
            bits = theirs.nbytes * 8 // prod(theirs.shape)
            start, merged_start = run.start * bits // 8, run.merged_start * bits // 8
            size = run.count * bits // 8
            return None if self._same_bytes(source.key, run.merged_key, start, merged_start, size) else other
        if not {ours, theirs.dtype} <= TORCH_DTYPES.keys():
            return other
        for start in range(0, run.count, PIECE_ELEMENTS):
            count = min(PIECE_ELEMENTS, run.count - start)
            merged = self.source.merged_values(run.merged_key, run.merged_start + start, 1, count)
            base = self.source.values(source, run.start + start, 1, count)
            if isinstance(source, QuantisedSource):
                alike = decoded_alike(base, merged, TORCH_DTYPES[output.dtype])
            else:
                alike = torch.equal(base.to(merged.dtype), merged)
            if broken(merged, base):
                return NON_FINITE
            if not alike:
                return other
        return None

    def _same_bytes(self, key: str, merged_key: str, start: int, merged_start: int, size: int) -> bool:
        source = self.source
        for done in range(0, size, PIECE_BYTES):
            count = min(PIECE_BYTES, size - done)
            base = source.base_bytes(key, start + done, start + done + count)
            if not identical(base, source.merged_bytes(merged_key, merged_start + done, merged_start + done + count)):
                return False
        return True
