"""Writing one shard: unchanged bytes copied as they are, changed tensors region by region.

Without a dtype override the output shard has the same header, byte for byte, and every tensor at the same place. With one, only
tensors that change are converted, so the header is written anew and later tensors move.
"""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from math import prod
from pathlib import Path

from harness.merge.copying import copy_range, create, sync, write_at
from harness.merge.deltas import (
    TORCH_DTYPES,
    Factors,
    Outcome,
    add_delta,
    bytes_of,
    chunks,
    convert,
    delta_rows,
    tensor_of,
)
from harness.merge.errors import IncompleteMergeError, InputChangedError, UnreadableInputError
from harness.merge.records import DTYPE_NAMES, MergePlan, PlanRow, Region
from harness.merge.safetensors_file import DTYPE_BITS, TensorFile, TensorInfo, encode_header, read_header, read_range

Advance = Callable[[int], None]
"""Called with the number of bytes just written."""


@dataclass(frozen=True, kw_only=True)
class _Open:
    """One shard being written: the plan, the adapter's factors, both descriptors, and what to call it in messages."""

    plan: MergePlan
    factors: Factors
    source: int
    target: int
    name: str
    advance: Advance

    def copy(self, start: int, stop: int, offset: int) -> None:
        """Copy source bytes ``[start, stop)`` to ``offset``."""
        if start < stop:
            copy_range(self.source, self.target, start, stop, offset, what=self.name)
            self.advance(stop - start)

    def write(self, data: bytes | bytearray, offset: int) -> None:
        """Write bytes at ``offset``."""
        write_at(self.target, data, offset, what=self.name)
        self.advance(len(data))


def output_dtype(plan: MergePlan, info: TensorInfo) -> str:
    """Return the dtype (by the format's name) that a changed tensor is written as."""
    return info.dtype if plan.dtype is None else DTYPE_NAMES[plan.dtype]


@dataclass(frozen=True, kw_only=True)
class OutputLayout:
    """Where things go in an output shard: a new header (None: the old one is kept), each tensor's offset, data and file size."""

    header: bytes | None
    offsets: Mapping[str, int]
    data_size: int
    size: int


def output_layout(plan: MergePlan, shard: TensorFile, rows: Mapping[str, PlanRow]) -> OutputLayout:
    """Return the layout of an output shard, given the rows of the plan that lie in it."""
    dtypes = {key: output_dtype(plan, info) if key in rows else info.dtype for key, info in shard.tensors.items()}
    if all(dtypes[key] == info.dtype for key, info in shard.tensors.items()):
        offsets = {key: info.start for key, info in shard.tensors.items()}
        return OutputLayout(header=None, offsets=offsets, data_size=shard.size - shard.data_start, size=shard.size)
    header = encode_header(((key, dtypes[key], info.shape) for key, info in shard.tensors.items()), shard.metadata)
    offsets = {}
    position = len(header)
    for key, info in shard.tensors.items():
        offsets[key] = position
        position += prod(info.shape) * DTYPE_BITS[dtypes[key]] // 8
    return OutputLayout(header=header, offsets=offsets, data_size=position - len(header), size=position)


def _gaps(row: PlanRow, elements: int) -> Iterator[tuple[int, int]]:
    """Yield the runs of elements of a changed tensor that no region covers."""
    position = 0
    for region in row.regions:
        if position < region.start:
            yield position, region.start
        position = region.stop
    if position < elements:
        yield position, elements


def _write_gap(files: _Open, key: str, offset: int, gap: tuple[int, int]) -> None:
    """Copy, or with a dtype override convert, elements that keep their values."""
    info = files.plan.base.info(key)
    dtype = output_dtype(files.plan, info)
    size, new_size = DTYPE_BITS[info.dtype] // 8, DTYPE_BITS[dtype] // 8
    if dtype == info.dtype:
        files.copy(info.start + gap[0] * size, info.start + gap[1] * size, offset + gap[0] * new_size)
        return
    whole = Region(start=gap[0], rows=gap[1] - gap[0], columns=1, use=0, expert=None, offset=0)
    for first, last in chunks(whole):
        start, stop = gap[0] + first, gap[0] + last
        data = read_range(files.source, info.start + start * size, info.start + stop * size, what=files.name)
        values = convert(tensor_of(data, info.dtype, (stop - start,)), TORCH_DTYPES[dtype], key)
        files.write(bytes_of(values, data), offset + start * new_size)


def _write_region(files: _Open, row: PlanRow, offset: int, region: Region) -> Outcome:
    """Write one region: base plus delta."""
    plan, factors = files.plan, files.factors
    info = plan.base.info(row.key)
    dtype = output_dtype(plan, info)
    size, new_size = DTYPE_BITS[info.dtype] // 8, DTYPE_BITS[dtype] // 8
    use = plan.uses[region.use]
    outcome = Outcome()
    for first, last in chunks(region):
        start, stop = region.start + first * region.columns, region.start + last * region.columns
        data = read_range(files.source, info.start + start * size, info.start + stop * size, what=files.name)
        base = tensor_of(data, info.dtype, (last - first, region.columns))
        delta = delta_rows(factors.of(region.use), use, region.expert or 0, region.offset + first, region.offset + last)
        result, part = add_delta(base, delta, TORCH_DTYPES[dtype], row.key)
        files.write(bytes_of(result, data), offset + start * new_size)
        outcome.add(part)
    return outcome


def _check_unchanged(shard: TensorFile) -> None:
    now = read_header(shard.path, name=shard.name)
    if (now.size, now.header_sha256) != (shard.size, shard.header_sha256):
        raise InputChangedError(f"{shard.name} is no longer the file that was planned with.", "Plan and merge again.")


def _fill(files: _Open, shard: TensorFile, rows: dict[str, PlanRow]) -> dict[str, Outcome]:
    """Write everything into the new shard; return what became of each changed tensor."""
    plan = files.plan
    layout = output_layout(plan, shard, rows)
    header, offsets = layout.header, layout.offsets
    outcomes: dict[str, Outcome] = {}
    written = len(header) if header is not None else shard.data_start
    if header is not None:
        files.write(header, 0)
    # Runs of unchanged tensors (and an unchanged header) are one copy each.
    run_start, run_offset = (0, 0) if header is None else (shard.data_start, written)
    for key, info in shard.tensors.items():
        new_dtype = output_dtype(plan, info) if key in rows else info.dtype
        written += prod(info.shape) * DTYPE_BITS[new_dtype] // 8
        if key not in rows:
            continue
        files.copy(run_start, info.start, run_offset)
        outcomes[key] = Outcome()
        for gap in _gaps(rows[key], prod(info.shape)):
            _write_gap(files, key, offsets[key], gap)
        for region in rows[key].regions:
            outcomes[key].add(_write_region(files, rows[key], offsets[key], region))
        run_start, run_offset = info.stop, written
    files.copy(run_start, shard.size, run_offset)
    if written != layout.size or os.fstat(files.target).st_size != layout.size:
        raise IncompleteMergeError(
            f"{shard.name} should have {layout.size} bytes and has {os.fstat(files.target).st_size}."
        )
    return outcomes


def write_shard(plan: MergePlan, factors: Factors, number: int, folder: Path, advance: Advance) -> dict[str, Outcome]:
    """Write shard ``number`` of the plan's base, merged, into ``folder``; return what became of each changed tensor.

    Raises:
        InputChangedError: the shard is not the one that was planned with.
        UnreadableInputError: it could not be read.
        NonFiniteError: NaN or infinity in a tensor that changes.
        IncompleteMergeError: writing failed.
    """
    shard = plan.base.shards[number]
    rows = {row.key: row for row in plan.rows if row.shard == number}
    _check_unchanged(shard)
    try:
        source = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    except OSError as error:
        raise UnreadableInputError(f"{shard.name} cannot be read: {error.strerror or error}.") from error
    try:
        target = create(folder / shard.name, what=shard.name)
        try:
            files = _Open(plan=plan, factors=factors, source=source, target=target, name=shard.name, advance=advance)
            outcomes = _fill(files, shard, rows)
            sync(target, what=shard.name)
        finally:
            os.close(target)
    finally:
        os.close(source)
    return outcomes
