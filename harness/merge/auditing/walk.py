"""The audit itself: every tensor of the base once, in the order in which it lies in its shards.

Reading goes from front to back through the base; the merged checkpoint is read wherever the same contents are. No tensor is held whole:
a slice is compared in pieces, and only a slice that fails is read again to find out why.
"""

from __future__ import annotations

import os
import threading
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import torch

from harness.merge.auditing.diagnosis import Diagnosis, Doctor
from harness.merge.auditing.files import missing_files
from harness.merge.auditing.measure import measure
from harness.merge.auditing.merged import MergedCheckpoint, open_merged
from harness.merge.auditing.pairing import Pairer, Pairing
from harness.merge.auditing.replaced import Replaced
from harness.merge.auditing.report import FAULTS, AuditReport, TensorVerdict, Verdict
from harness.merge.auditing.scope import check_judgeable
from harness.merge.auditing.slices import Gap, Siblings, Slice, gaps_of, slices_of
from harness.merge.auditing.source import CHUNK_ELEMENTS, Source
from harness.merge.errors import UnsupportedBaseError
from harness.merge.layout import BPacking, IoLayout
from harness.merge.names import expert_module, kind_of, layer_of
from harness.merge.plan import plan_merge
from harness.merge.records import MergePlan, PlanRow
from harness.merge.safetensors_file import DTYPE_BITS
from harness.merge.sources import TORCH_DTYPES

SEVERITY: tuple[str, ...] = ("indistinguishable", "applied", "untouched", "partial", "scrambled", "wrong", "missing")
CARE: tuple[str, ...] = ("bit-exact", "bf16-double-rounded", "fp16-double-rounded", "1-ulp", "low-precision")
"""How applied deltas were applied, the closest first."""
NAMED_EXPERTS = 3
JOB_BYTES = 1 << 25
"""Bytes of the base that a thread takes at a time."""
Progress = Callable[[int, int], None]


@dataclass(frozen=True, slots=True, kw_only=True)
class Found:
    """What one slice holds."""

    number: int | None
    verdict: str
    detail: str
    scale: float | None = None
    exact: int = 0
    elements: int = 0


class Auditor:
    """Compares tensors one after the other; holds what the comparisons share."""

    def __init__(self, plan: MergePlan, merged: MergedCheckpoint) -> None:
        self.plan = plan
        self.merged = merged
        self.rows = {row.key: row for row in plan.rows}
        pairer = Pairer(plan.base, merged)
        self.pairings: dict[str, Pairing] = {key: pairer.pair(key) for key in plan.base.shard_of}
        self.siblings = Siblings(plan, (item for row in plan.rows for item in slices_of(row, self.pairings[row.key])))
        self._local = threading.local()
        self._sources: list[Source] = []

    @property
    def source(self) -> Source:
        """This thread's files and buffers."""
        if not hasattr(self._local, "source"):
            self._local.source = Source(self.plan, self.merged)
            self._sources.append(self._local.source)
        source: Source = self._local.source
        return source

    def verdicts(self, keys: Sequence[str]) -> list[TensorVerdict]:
        """Return the verdicts on some tensors of the base, in order."""
        # What a diagnosis remembers stays within a job, so that the report does not depend on which thread did what.
        self._local.doctor = Doctor(self.source, self.siblings)
        return [self.verdict(key) for key in keys]

    def close(self) -> int:
        """Close all files; return how many bytes of tensors were read."""
        return sum(source.close() for source in self._sources)

    def verdict(self, key: str) -> TensorVerdict:
        """Return the verdict on one tensor of the base."""
        row, pairing = self.rows.get(key), self.pairings[key]
        if row is None:
            return self._untargeted(key, pairing)
        if not pairing.found:
            verdict: Verdict = "wrong" if pairing.problem else "missing"
            return self._row(key, verdict, pairing, detail=pairing.problem or "absent", expert=row.expert)
        base_dtype = self.plan.base.info(key).dtype
        if base_dtype not in TORCH_DTYPES:
            raise UnsupportedBaseError(f"{key} is stored as {base_dtype}, which this audit cannot compare.")
        if strange := {self.merged.info(name).dtype for name in pairing.keys} - TORCH_DTYPES.keys():
            detail = f"stored as {', '.join(sorted(strange))}, which cannot be compared with base + delta"
            return self._row(key, "wrong", pairing, detail=detail, expert=row.expert)
        found = [self._replaced(item) if item.replaced else self._slice(item) for item in slices_of(row, pairing)]
        found += self._gaps(row, pairing)
        return self._summed(row, pairing, found)

    def _slice(self, item: Slice) -> Found:
        source = self.source
        tally, dtype = measure(
            source.chunks(item),
            lambda first, last: source.base_rows(item, first, last),
            lambda first, last: source.merged_rows(item, first, last),
            lambda first, last: source.delta_rows(item, first, last),
        )
        how = tally.applied(dtype) if tally.moved and tally.nonzero else None
        if how is not None:
            verdict, detail, scale = "applied", how, None
        elif not tally.moved:
            (verdict, detail), scale = tally.unmoved(), None
        else:
            seen: Diagnosis = self._local.doctor.diagnose(item)
            verdict, detail, scale = seen.verdict, seen.detail, seen.scale
        return Found(
            number=item.number,
            verdict=verdict,
            detail=detail,
            scale=scale,
            exact=tally.exact,
            elements=tally.elements,
        )

    def _replaced(self, item: Slice) -> Found:
        """Judge rows that the adapter holds whole: they are its own, or the base's, or neither. Nothing is near enough but equal."""
        seen = Replaced()
        for first, last in self.source.chunks(item):
            wanted = self.source.replacement_rows(item, first, last)
            seen.add(self.source.base_rows(item, first, last), self.source.merged_rows(item, first, last), wanted)
        verdict, detail = seen.verdict()
        return Found(number=item.number, verdict=verdict, detail=detail, exact=seen.exact, elements=seen.elements)

    def _gaps(self, row: PlanRow, pairing: Pairing) -> list[Found]:
        """Return a fault for every part of a covered tensor that no delta reaches and that is not the base's."""
        return [
            Found(number=None, verdict="wrong", detail="elements that no delta reaches are not the base's")
            for gap in gaps_of(row, pairing)
            if not self._same(row.key, gap)
        ]

    def _same(self, key: str, gap: Gap) -> bool:
        """Return whether a run of elements is the base's: byte for byte, or value for value in another float dtype."""
        ours, theirs = self.plan.base.info(key).dtype, self.merged.info(gap.merged_key).dtype
        if ours == theirs:
            return self._same_bytes(key, gap, DTYPE_BITS[ours])
        if not {ours, theirs} <= TORCH_DTYPES.keys():
            return False
        for start in range(0, gap.count, CHUNK_ELEMENTS):
            count = min(CHUNK_ELEMENTS, gap.count - start)
            merged = self.source.merged_reader.elements(gap.merged_key, gap.merged_start + start, 1, count)
            base = self.source.base_reader.elements(key, gap.start + start, 1, count)
            if not torch.equal(base.to(merged.dtype), merged):
                return False
        return True

    def _same_bytes(self, key: str, gap: Gap, bits: int) -> bool:
        # Sub-byte dtypes are only ever compared whole, so that no run starts inside a byte.
        shift, stop = gap.merged_start * bits // 8 - gap.start * bits // 8, (gap.start + gap.count) * bits // 8
        step = CHUNK_ELEMENTS * 2
        for start in range(gap.start * bits // 8, stop, step):
            end = min(start + step, stop)
            theirs = self.source.merged_reader.raw(gap.merged_key, start + shift, end + shift)
            ours = self.source.base_reader.raw(key, start, end)
            if not _equal(ours, theirs):
                return False
        return True

    def _untargeted(self, key: str, pairing: Pairing) -> TensorVerdict:
        single = expert_module(key.removesuffix(".weight"))
        expert = single[1] if single else None
        if not pairing.found:
            return self._row(key, "changed", pairing, detail=pairing.problem or "absent", expert=expert)
        runs = (
            Gap(start=piece.start, count=piece.count, merged_key=piece.merged_key, merged_start=piece.merged_start)
            for piece in pairing.pieces
        )
        if all(self._same(key, run) for run in runs):
            return self._row(key, "same", pairing, expert=expert)
        return self._row(key, "changed", pairing, detail="not the base's values", expert=expert)

    def _row(
        self,
        key: str,
        verdict: Verdict,
        pairing: Pairing,
        *,
        detail: str | None = None,
        expert: int | None = None,
        found: Sequence[Found] = (),
    ) -> TensorVerdict:
        ours = self.plan.base.info(key).dtype
        theirs = {self.merged.info(name).dtype for name in pairing.keys} - {ours}
        by_number: dict[int, Found] = {}
        for one in found:
            if one.number is not None and (one.number not in by_number or _worse(one, by_number[one.number])):
                by_number[one.number] = one
        several = expert is None and len(by_number) > 1
        scales = [one.scale for one in found if one.scale is not None]
        elements = sum(one.elements for one in found)
        return TensorVerdict(
            key=key,
            kind=kind_of(key),
            layer=layer_of(key),
            expert=expert,
            verdict=verdict,
            detail=detail,
            scale=scales[0] if scales else None,
            exact_share=sum(one.exact for one in found) / elements if elements else None,
            stored_as=() if pairing.keys == (key,) else pairing.keys,
            merged_dtype=", ".join(sorted(theirs)) or None,
            slices=dict(Counter(one.verdict for one in by_number.values())) if several else {},
            at_fault=tuple(sorted(number for number, one in by_number.items() if one.verdict in FAULTS))
            if several
            else (),
        )

    def _summed(self, row: PlanRow, pairing: Pairing, found: Sequence[Found]) -> TensorVerdict:
        """Return the verdict on a tensor from those on its slices: the worst, with the experts named that have it."""
        worst = max(found, key=lambda one: SEVERITY.index(one.verdict)).verdict
        having = [one for one in found if one.verdict == worst]
        if worst == "applied":
            detail = max((one.detail for one in having), key=CARE.index)
        elif len(having) == 1 or len({one.detail for one in having}) == 1:
            detail = having[0].detail
        elif worst == "indistinguishable":
            detail = "below-rounding"
        else:
            shown = [f"expert {one.number}: {one.detail}" if one.number is not None else one.detail for one in having]
            more = f"; and {len(shown) - NAMED_EXPERTS} more" if len(shown) > NAMED_EXPERTS else ""
            detail = "; ".join(shown[:NAMED_EXPERTS]) + more
        verdict: Verdict = worst  # type: ignore[assignment]  # slices and tensors share the names of the verdicts
        return self._row(row.key, verdict, pairing, detail=detail, expert=row.expert, found=found)


def _worse(one: Found, other: Found) -> bool:
    return SEVERITY.index(one.verdict) > SEVERITY.index(other.verdict)


def _equal(one: memoryview, other: memoryview) -> bool:
    """Return whether two buffers of one size hold the same bytes; torch compares whole words, memoryview single bytes."""
    size = len(one)
    words = size - size % 8
    if words and not torch.equal(
        torch.frombuffer(one[:words], dtype=torch.int64), torch.frombuffer(other[:words], dtype=torch.int64)
    ):
        return False
    return bytes(one[words:]) == bytes(other[words:])


def _counted(values: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{value} ({count} tensors)" for value, count in sorted(Counter(values).items()))


def _jobs(plan: MergePlan) -> Iterator[tuple[list[str], int]]:
    """Yield the base's keys in file order, in jobs of about ``JOB_BYTES``, with their size."""
    keys: list[str] = []
    size = 0
    for shard in plan.base.shards:
        for key, info in shard.tensors.items():
            keys.append(key)
            size += info.nbytes
            if size >= JOB_BYTES:
                yield keys, size
                keys, size = [], 0
    if keys:
        yield keys, size


def _threads() -> int:
    """Return how many jobs to run at a time: one where torch itself uses several cores, which would only get in each other's way."""
    return len(os.sched_getaffinity(0)) if torch.get_num_threads() == 1 else 1


def _compare(auditor: Auditor, progress: Progress | None) -> list[TensorVerdict]:
    jobs = list(_jobs(auditor.plan))
    total, done = sum(size for _, size in jobs), 0
    rows: list[TensorVerdict] = []
    with ThreadPoolExecutor(max_workers=_threads()) as pool:
        try:
            for (_, size), verdicts in zip(jobs, pool.map(auditor.verdicts, (keys for keys, _ in jobs)), strict=True):
                rows += verdicts
                done += size
                if progress is not None:
                    progress(done, total)
        except BaseException:
            pool.shutdown(wait=True, cancel_futures=True)
            raise
    return rows


def run_audit(
    base: Path,
    adapter: Path,
    merged: Path,
    *,
    io_layout: IoLayout | None,
    b_packing: BPacking | None,
    progress: Progress | None,
) -> AuditReport:
    """Compare the three directories; see ``harness.merge.audit``."""
    plan = plan_merge(base, adapter, io_layout=io_layout, b_packing=b_packing)
    check_judgeable(plan)
    found = open_merged(merged)
    auditor = Auditor(plan, found)
    try:
        auditor.source.check_finite()
        rows = _compare(auditor, progress)
    finally:
        bytes_read = auditor.close()
    missing, others = missing_files(plan.base, found)
    pairings = auditor.pairings
    used = {name for pairing in pairings.values() for name in pairing.keys}
    used |= {key for key, pairing in pairings.items() if pairing.problem and key in found}
    return AuditReport(
        rows=tuple(rows),
        missing_files=missing,
        index_problems=found.problems,
        unexpected=tuple(sorted(key for key in found.shard_of if key not in used)),
        equivalents=_counted(pairing.rename for pairing in pairings.values() if pairing.rename),
        dtype_changes=_counted(
            f"{plan.base.info(row.key).dtype} -> {row.merged_dtype}" for row in rows if row.merged_dtype
        ),
        other_files=others,
        io_layout=plan.io_layout,
        b_packing=plan.b_packing,
        notes=plan.notes,
        bytes_read=bytes_read,
    )
