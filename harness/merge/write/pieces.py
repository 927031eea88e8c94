"""What has to be done to write a shard, as pieces that any thread can take, in the order of their bytes in the file.

Pure: from the plan alone. A piece is a few MiB: large enough that taking one costs nothing, small enough that threads
finish together.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from math import prod

from harness.merge.base.weight import PlainSource
from harness.merge.files.safetensors_file import DTYPE_BITS
from harness.merge.plan.merge_plan import MergePlan, PairContribution, PlanRow, Region
from harness.merge.plan.output_shards import Output, OutputShard

COPY_BYTES = 16 * 1024 * 1024
PIECE_ELEMENTS = 2 * 1024 * 1024


@dataclass(frozen=True, slots=True)
class Copy:
    """Bytes ``[start, stop)`` of shard ``shard`` of the base go to ``offset`` of the output."""

    shard: int
    start: int
    stop: int
    offset: int


@dataclass(frozen=True, slots=True)
class Change:
    """Rows ``first:last`` of a region of ``row`` are computed; the region's first row goes to ``offset``."""

    row: PlanRow
    region: Region
    first: int
    last: int
    offset: int


@dataclass(frozen=True, slots=True)
class Convert:
    """Elements ``[start, stop)`` of ``row``, which no region covers, are written in its dtype.

    Element 0 goes to ``offset``.
    """

    row: PlanRow
    start: int
    stop: int
    offset: int


Piece = Copy | Change | Convert


def whole_only(plan: MergePlan, region: Region) -> bool:
    """Return whether a region cannot be computed row by row: DoRA over columns, whose norms need every row."""
    contributions = [plan.contributions[term.contribution] for term in region.terms]
    return any(
        isinstance(contribution, PairContribution) and contribution.magnitude and contribution.swapped
        for contribution in contributions
    )


def _copies(shard: int, start: int, stop: int, offset: int) -> Iterator[Copy]:
    for position in range(start, stop, COPY_BYTES):
        yield Copy(shard, position, min(position + COPY_BYTES, stop), offset + position - start)


def _gap(plan: MergePlan, row: PlanRow, offset: int, start: int, stop: int) -> Iterator[Piece]:
    """Yield what copies elements that keep their values, or converts them where the dtype or format changes.

    In a tensor that changes elsewhere they go through memory, because NaN anywhere in it is refused.
    """
    size = DTYPE_BITS[row.dtype] // 8
    if isinstance(row.source, PlainSource) and not row.regions:
        info = plan.base.info(row.source.key)
        if info.dtype == row.dtype:
            shard = plan.base.shard_of[row.source.key]
            yield from _copies(shard, info.start + start * size, info.start + stop * size, offset + start * size)
            return
    # Whole rows at a time, so that decoding starts where a row does.
    step = max(1, PIECE_ELEMENTS // row.shape[-1]) * row.shape[-1]
    for position in range(start, stop, step):
        yield Convert(row, position, min(position + step, stop), offset)


def _row(plan: MergePlan, row: PlanRow, offset: int) -> Iterator[Piece]:
    """Yield the pieces of one tensor that is not a copy."""
    size, position = DTYPE_BITS[row.dtype] // 8, 0
    for region in row.regions:
        if position < region.start:
            yield from _gap(plan, row, offset, position, region.start)
        step = region.rows if whole_only(plan, region) else max(1, PIECE_ELEMENTS // region.columns)
        for first in range(0, region.rows, step):
            yield Change(row, region, first, min(first + step, region.rows), offset + region.start * size)
        position = region.stop
    if position < prod(row.shape):
        yield from _gap(plan, row, offset, position, prod(row.shape))


def pieces_of(plan: MergePlan, number: int, shard: OutputShard) -> Iterator[Piece]:
    """Yield the pieces of shard ``number`` of the output.

    Neighbours that stay as they are become one run, the kept header with them.
    """
    base = plan.base.shards[number]
    run = None if shard.header is not None else (0, base.data_start, 0)
    for output in shard.outputs:
        start, stop = _place(plan, number, output)
        if run is not None and output.row is None and run[1] == start and run[2] + run[1] - run[0] == output.start:
            run = (run[0], stop, run[2])
            continue
        if run is not None:
            yield from _copies(number, *run)
        run = (start, stop, output.start) if output.row is None else None
        if output.row is not None:
            yield from _row(plan, output.row, output.start)
    if run is not None:
        yield from _copies(number, *run)


def _place(plan: MergePlan, number: int, output: Output) -> tuple[int, int]:
    """Return where the bytes of a copied tensor lie in its shard of the base."""
    if output.row is not None:
        return 0, 0
    info = plan.base.shards[number].tensors[output.key]
    return info.start, info.stop
