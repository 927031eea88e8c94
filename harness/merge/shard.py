"""Writing one shard: unchanged bytes copied as they are, changed tensors region by region.

Where no tensor changes its name, shape or dtype, the output shard has the same header, byte for byte, and every tensor at the same place.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from math import prod
from pathlib import Path

from harness.merge.copying import copy_range, create, sync, write_at
from harness.merge.deltas import CHUNK_ELEMENTS, Merger, Outcome, chunks
from harness.merge.errors import IncompleteMergeError
from harness.merge.outputs import Output, OutputShard
from harness.merge.records import MergePlan, PlanRow
from harness.merge.safetensors_file import DTYPE_BITS
from harness.merge.sources import Files
from harness.merge.weights import Stored

Advance = Callable[[int], None]
"""Called with the number of bytes just written."""


@dataclass(frozen=True, kw_only=True)
class _Open:
    """One shard being written."""

    plan: MergePlan
    files: Files
    merger: Merger
    target: int
    name: str
    advance: Advance

    def copy(self, shard: int, start: int, stop: int, offset: int) -> None:
        """Copy bytes ``[start, stop)`` of a shard of the base to ``offset``."""
        if start < stop:
            source = self.plan.base.shards[shard]
            copy_range(self.files.of(source), self.target, start, stop, offset, what=source.name)
            self.advance(stop - start)

    def write(self, data: bytes | bytearray, offset: int) -> None:
        """Write bytes at ``offset``."""
        write_at(self.target, data, offset, what=self.name)
        self.advance(len(data))


def _gaps(row: PlanRow) -> Iterator[tuple[int, int]]:
    """Yield the runs of elements of a changed tensor that no region covers."""
    position = 0
    for region in row.regions:
        if position < region.start:
            yield position, region.start
        position = region.stop
    if position < prod(row.shape):
        yield position, prod(row.shape)


def _write_gap(files: _Open, row: PlanRow, offset: int, gap: tuple[int, int]) -> None:
    """Copy, or where the dtype or format changes convert, elements that keep their values."""
    size = DTYPE_BITS[row.dtype] // 8
    if isinstance(row.source, Stored):
        info = files.plan.base.info(row.source.key)
        if info.dtype == row.dtype:
            shard = files.plan.base.shard_of[row.source.key]
            files.copy(shard, info.start + gap[0] * size, info.start + gap[1] * size, offset + gap[0] * size)
            return
    # Whole rows at a time, so that decoding starts where a row does.
    step = max(1, CHUNK_ELEMENTS // row.shape[-1]) * row.shape[-1]
    for start in range(gap[0], gap[1], step):
        files.write(files.merger.kept(row, start, min(start + step, gap[1]) - start), offset + start * size)


def _write_row(files: _Open, row: PlanRow, offset: int) -> Outcome:
    """Write one tensor that is not a copy; return what the adapters did to it."""
    outcome = Outcome()
    size = DTYPE_BITS[row.dtype] // 8
    for gap in _gaps(row):
        _write_gap(files, row, offset, gap)
    for region in row.regions:
        for first, last in chunks(files.plan, region):
            data, part = files.merger.values(row, region, first, last)
            files.write(data, offset + (region.start + first * region.columns) * size)
            outcome.add(part)
    return outcome


def _copy_runs(files: _Open, number: int, shard: OutputShard) -> None:
    """Copy everything that stays as it is: runs of neighbours, and the header where it is kept, in one piece each."""
    base = files.plan.base.shards[number]
    runs: list[list[int]] = [] if shard.header is not None else [[0, base.data_start, 0]]
    for output in shard.outputs:
        if output.row is None:
            info = base.tensors[output.key]
            if runs and runs[-1][1] == info.start and runs[-1][2] + runs[-1][1] - runs[-1][0] == output.start:
                runs[-1][1] = info.stop
            else:
                runs.append([info.start, info.stop, output.start])
    for start, stop, offset in runs:
        files.copy(number, start, stop, offset)


def _fill(files: _Open, number: int, shard: OutputShard) -> dict[str, Outcome]:
    """Write everything into the new shard; return what became of each tensor that an adapter covers."""
    if shard.header is not None:
        files.write(shard.header, 0)
    _copy_runs(files, number, shard)
    changed: list[tuple[Output, PlanRow]] = [(output, output.row) for output in shard.outputs if output.row is not None]
    outcomes = {row.key: (_write_row(files, row, output.start), row) for output, row in changed}
    written = os.fstat(files.target).st_size
    if written != shard.size:
        raise IncompleteMergeError(f"{shard.name} should have {shard.size} bytes and has {written}.")
    return {key: outcome for key, (outcome, row) in outcomes.items() if row.regions}


def write_shard(
    plan: MergePlan, files: Files, merger: Merger, number: int, shard: OutputShard, folder: Path, advance: Advance
) -> dict[str, Outcome]:
    """Write shard ``number`` of the output into ``folder``; return what became of each tensor that an adapter covers.

    Raises:
        InputChangedError: a shard of the base is not the one that was planned with.
        UnreadableInputError: it could not be read.
        NonFiniteError: NaN or infinity in a tensor that changes.
        IncompleteMergeError: writing failed.
    """
    files.of(plan.base.shards[number])
    target = create(folder / shard.name, what=shard.name)
    try:
        opened = _Open(plan=plan, files=files, merger=merger, target=target, name=shard.name, advance=advance)
        outcomes = _fill(opened, number, shard)
        sync(target, what=shard.name)
    finally:
        os.close(target)
    return outcomes
