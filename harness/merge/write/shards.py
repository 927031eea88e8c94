"""Writing shards: many threads fill them piece by piece, one more makes each durable when its last piece is there.

Where no tensor changes its name, shape or dtype, the output shard has the same header, byte for byte, and every tensor
at the same place.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from math import prod
from pathlib import Path
from threading import Lock

import torch

from harness.merge.base.weight import PlainSource
from harness.merge.files.copying import copy_range, create, write_at
from harness.merge.files.input_files import InputFiles
from harness.merge.files.safetensors_file import DTYPE_BITS
from harness.merge.plan.merge_plan import MergePlan, PlanRow
from harness.merge.plan.output_shards import OutputShard
from harness.merge.write.arithmetic import Merger, Outcome
from harness.merge.write.buffers import Buffers
from harness.merge.write.factored_deltas import FactoredDeltas
from harness.merge.write.flushing import Flusher, OpenFile
from harness.merge.write.pieces import Change, Convert, Copy, Piece, pieces_of, whole_only
from harness.merge.write.threads import Lanes, share_out

CHUNK_ELEMENTS = 1024 * 1024
"""Elements handled at once: few enough to stay in the processor's caches from the read to the write (4 MiB in float32).
"""

Finished = Callable[["ShardFile"], None]
"""Called with a shard that is complete and durable, one at a time."""


def source_bytes(plan: MergePlan, row: PlanRow, elements: int) -> int:
    """Return how many bytes of the base are read for some elements of a row."""
    if row.source is None:
        return 0
    stored = sum(plan.base.info(key).nbytes for key in row.source.keys)
    shape = plan.base.info(row.source.key).shape if isinstance(row.source, PlainSource) else row.source.shape
    return stored * elements // prod(shape)


class ShardFile(OpenFile):
    """One output shard that is being written. ``outcomes``: what became of each tensor that an adapter covers."""

    def __init__(self, shard: OutputShard, folder: Path, pieces: int) -> None:
        self.path = folder / shard.name
        super().__init__(shard.name, create(self.path, what=shard.name), shard.size, pieces)
        self.outcomes: dict[str, Outcome] = {
            output.key: Outcome() for output in shard.outputs if output.row is not None and output.row.regions
        }
        self._outcome_lock = Lock()

    def add(self, key: str, outcome: Outcome) -> None:
        """Take the outcome of a part of a tensor into account."""
        with self._outcome_lock:
            self.outcomes[key].add(outcome)


class ShardWriter:
    """Writes shards of a plan into a folder.

    ``written`` counts the bytes so far. ``decoded`` counts bytes of the base that were read as numbers; the rest was
    copied unseen.
    """

    def __init__(
        self, plan: MergePlan, files: InputFiles, merger: Merger, deltas: FactoredDeltas, folder: Path
    ) -> None:
        self._plan = plan
        self._files = files
        self._merger = merger
        self._deltas = deltas
        self._folder = folder
        self._lock = Lock()
        self._open: list[ShardFile] = []
        self.written = 0
        self.decoded = 0

    def _count(self, target: ShardFile, written: int, decoded: int = 0) -> None:
        with self._lock:
            self.written += written
            self.decoded += decoded
        target.wrote(written)

    def _copy(self, target: ShardFile, piece: Copy) -> None:
        source = self._plan.base.shards[piece.shard]
        descriptor = self._files.of(source)
        copy_range(descriptor, target.descriptor, piece.start, piece.stop, piece.offset, what=source.name)
        self._count(target, piece.stop - piece.start)

    def _change(self, buffers: Buffers, target: ShardFile, piece: Change) -> None:
        row, region = piece.row, piece.region
        size, columns = DTYPE_BITS[row.dtype] // 8, region.columns
        rows = piece.last - piece.first
        # In even steps: a small remainder costs as many calls as a full step.
        steps = 1 if whole_only(self._plan, region) else -(-rows // max(1, CHUNK_ELEMENTS // columns))
        step = -(-rows // steps)
        for first in range(piece.first, piece.last, step):
            last = min(first + step, piece.last)
            data, outcome = self._merger.values(buffers, row, region, first, last)
            write_at(target.descriptor, data, piece.offset + first * columns * size, what=target.name)
            self._deltas.done(region, last - first)
            target.add(row.key, outcome)
            self._count(target, len(data), source_bytes(self._plan, row, (last - first) * columns))

    def _convert(self, buffers: Buffers, target: ShardFile, piece: Convert) -> None:
        row, size = piece.row, DTYPE_BITS[piece.row.dtype] // 8
        step = max(1, CHUNK_ELEMENTS // row.shape[-1]) * row.shape[-1]
        for start in range(piece.start, piece.stop, step):
            stop = min(start + step, piece.stop)
            data = self._merger.kept(buffers, row, start, stop - start)
            write_at(target.descriptor, data, piece.offset + start * size, what=target.name)
            self._count(target, len(data), source_bytes(self._plan, row, stop - start))

    def _do(self, buffers: Buffers, target: ShardFile, piece: Piece) -> None:
        if isinstance(piece, Copy):
            self._copy(target, piece)
        elif isinstance(piece, Change):
            self._change(buffers, target, piece)
        else:
            self._convert(buffers, target, piece)

    def _pieces(self, number: int, shard: OutputShard) -> Iterator[tuple[ShardFile, Piece]]:
        """Yield the pieces of a shard, which is opened when the first is asked for."""
        # A shard that is all header still gets a piece, so that someone finishes it.
        pieces = list(pieces_of(self._plan, number, shard)) or [Copy(number, 0, 0, 0)]
        self._files.of(self._plan.base.shards[number])
        target = ShardFile(shard, self._folder, len(pieces))
        self._open.append(target)
        if shard.header is not None:
            write_at(target.descriptor, shard.header, 0, what=shard.name)
            self._count(target, len(shard.header))
        for piece in pieces:
            yield target, piece

    def write(
        self,
        shards: Sequence[tuple[int, OutputShard]],
        finished: Finished,
        *,
        threads: int,
        lanes: int,
        device: torch.device,
        poll: Callable[[], None],
    ) -> None:
        """Write shards, ``lanes`` of them at once; each is handed to ``finished`` when it is complete and on the disk.

        Raises:
            InputChangedError: a shard of the base is not the one that was planned with.
            NonFiniteError: NaN or infinity in a tensor that changes.
            IncompleteMergeError: writing failed.
        """

        def work(buffers: Buffers, item: tuple[ShardFile, Piece]) -> None:
            target, piece = item
            with buffers.stream():
                self._do(buffers, target, piece)
            flusher.piece_done(target)

        def check() -> None:
            flusher.check()
            poll()

        try:
            with Flusher(finished, lanes) as flusher:
                pieces = Lanes((self._pieces(number, shard) for number, shard in shards), lanes)
                share_out(pieces, work, lambda: Buffers(device), threads=threads, poll=check)
            poll()
        finally:
            for target in self._open:
                target.close()
            self._open.clear()
