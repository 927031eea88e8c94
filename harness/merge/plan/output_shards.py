"""Which tensors each output shard holds, and where: decided from the plan alone.

A shard whose tensors keep their names, shapes and dtypes keeps its header byte for byte. Otherwise the header is
written anew: tensors stay in the base's order, a dequantised weight stands where the first of its parts stood, and new
tensors follow at the end.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from math import prod
from pathlib import Path

from harness.merge.errors import UnreadableInputError
from harness.merge.files.safetensors_file import DTYPE_BITS, encode_header
from harness.merge.plan.merge_plan import MergePlan, PlanRow


@dataclass(frozen=True, slots=True, kw_only=True)
class Output:
    """One tensor of an output shard: its bytes ``[start, stop)`` in the file.

    ``row`` is None for a copy of the base's.
    """

    key: str
    dtype: str
    shape: tuple[int, ...]
    start: int
    stop: int
    row: PlanRow | None


@dataclass(frozen=True, kw_only=True)
class OutputShard:
    """An output shard. ``header`` is None where the base's is kept.

    ``outputs`` are in file order; sizes are in bytes.
    """

    name: str
    header: bytes | None
    outputs: tuple[Output, ...]
    data_size: int
    size: int


def _tensors(plan: MergePlan, number: int) -> list[tuple[str, str, tuple[int, ...], PlanRow | None]]:
    """Return (key, dtype, shape, row) of what shard ``number`` will hold, in order."""
    shard = plan.base.shards[number]
    rows = {row.key: row for row in (*plan.rows, *plan.conversions) if row.shard == number}
    at = {key: row for row in rows.values() if row.key not in shard.tensors for key in _anchor(row, plan.dropped)}
    result: list[tuple[str, str, tuple[int, ...], PlanRow | None]] = []
    for key, info in shard.tensors.items():
        row = rows.pop(key, None) or (rows.pop(at[key].key, None) if key in at else None)
        if row is not None:
            result.append((row.key, row.dtype, row.shape, row))
        elif key not in plan.dropped:
            result.append((key, info.dtype, info.shape, None))
    result += [(key, row.dtype, row.shape, row) for key, row in rows.items()]
    return result


def _anchor(row: PlanRow, dropped: frozenset[str]) -> tuple[str, ...]:
    """Return the tensor in whose place a row's goes: the first of its parts, where that is not itself in the output."""
    return tuple(key for key in (row.source.keys[:1] if row.source else ()) if key in dropped)


def output_shard(plan: MergePlan, number: int) -> OutputShard:
    """Return what shard ``number`` of the output holds."""
    shard = plan.base.shards[number]
    tensors = _tensors(plan, number)
    same = len(tensors) == len(shard.tensors) and all(
        key in shard.tensors and (shard.tensors[key].dtype, shard.tensors[key].shape) == (dtype, shape)
        for key, dtype, shape, _ in tensors
    )
    header = None if same else encode_header(((key, dtype, shape) for key, dtype, shape, _ in tensors), shard.metadata)
    position = start = shard.data_start if header is None else len(header)
    outputs: list[Output] = []
    for key, dtype, shape, row in tensors:
        stop = position + prod(shape) * DTYPE_BITS[dtype] // 8
        outputs.append(Output(key=key, dtype=dtype, shape=shape, start=position, stop=stop, row=row))
        position = stop
    return OutputShard(
        name=shard.name, header=header, outputs=tuple(outputs), data_size=position - start, size=position
    )


def output_shards(plan: MergePlan) -> tuple[OutputShard, ...]:
    """Return what each shard of the output will hold."""
    return tuple(output_shard(plan, number) for number in range(len(plan.base.shards)))


def bytes_needed(plan: MergePlan, shards: Sequence[OutputShard], folder: Path) -> int:
    """Return how many bytes some shards take at least, on the file system of ``folder``.

    Within one file system, bytes that are copied may be shared with the base's, which only the copy itself finds out;
    they are not counted then.

    Raises:
        UnreadableInputError: a shard of the base is gone.
    """
    device = folder.stat().st_dev
    try:
        shared = {shard.name for shard in plan.base.shards if shard.path.stat().st_dev == device}
    except OSError as error:
        raise UnreadableInputError(f"{error.filename} cannot be read: {error.strerror}.") from error
    return sum(
        sum(output.stop - output.start for output in shard.outputs if output.row is not None)
        if shard.name in shared
        else shard.size
        for shard in shards
    )


def weight_map(shards: tuple[OutputShard, ...]) -> Mapping[str, str]:
    """Return the index's map of tensor keys to file names."""
    return {output.key: shard.name for shard in shards for output in shard.outputs}
