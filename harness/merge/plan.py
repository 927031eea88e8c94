"""Planning: from headers, index and configurations to an immutable plan, with every shape checked before a byte is written.

Each lora pair is matched to the base (``matching``), the layouts are decided over the whole adapter (``layout``), and every match
becomes regions of on-disk tensors. What no region consumes, what two claim and what is targeted but not reached are
errors that list names.
"""

from __future__ import annotations

from collections.abc import Mapping
from itertools import pairwise
from pathlib import Path

from harness.merge.adapter import open_adapter
from harness.merge.checkpoint import Checkpoint, open_checkpoint
from harness.merge.coverage import check_coverage
from harness.merge.errors import MalformedAdapterError
from harness.merge.layout import BPacking, IoLayout, decide_b_packing, decide_io_layout
from harness.merge.matching import Match, Matcher
from harness.merge.names import expert_module, kind_of, layer_of
from harness.merge.records import DtypeName, MergePlan, PairUse, PlanRow, Region
from harness.merge.stacks import Place


def _regions(match: Match, use: int) -> list[tuple[str, Region]]:
    """Return (key, region) of everything that a matched pair changes."""
    if match.stack is None:
        placed: list[tuple[Place, int | None]] = [(place, None) for place in match.places]
        columns = match.columns
    else:
        count, columns = match.stack.num_experts, match.stack.in_features
        placed = [(place, expert) for expert in range(count) for place in match.stack.places(expert)]
    return [
        (
            place.key,
            Region(start=place.start, rows=place.rows, columns=columns, use=use, expert=expert, offset=place.offset),
        )
        for place, expert in placed
    ]


def _rows(base: Checkpoint, found: Mapping[str, list[Region]], uses: tuple[PairUse, ...]) -> tuple[PlanRow, ...]:
    """Return the plan's rows in file order; two pairs that claim the same elements are an error."""
    rows: list[PlanRow] = []
    for key, unordered in found.items():
        regions = sorted(unordered, key=lambda region: region.start)
        for before, after in pairwise(regions):
            if after.start < before.stop:
                claimed = [uses[region.use].pair.module for region in (before, after)]
                raise MalformedAdapterError(f"two lora pairs cover the same part of {key}: {' and '.join(claimed)}.")
        single = expert_module(key.removesuffix(".weight"))
        rows.append(
            PlanRow(
                key=key,
                shard=base.shard_of[key],
                kind=kind_of(key),
                layer=layer_of(key),
                expert=single[1] if single else None,
                regions=tuple(regions),
            )
        )
    return tuple(sorted(rows, key=lambda row: (row.shard, base.info(row.key).start)))


def plan_merge(
    base: Path,
    adapter: Path,
    *,
    io_layout: IoLayout | None = None,
    b_packing: BPacking | None = None,
    dtype: DtypeName | None = None,
) -> MergePlan:
    """Plan a merge from headers and configurations; reads no tensor data and needs no torch.

    Args:
        base: directory of the base checkpoint (safetensors).
        adapter: directory of a PEFT LoRA adapter.
        io_layout: settles the io layout where the shapes leave it open; see ``harness.merge.layout``.
        b_packing: overrides how lora_B is packed.
        dtype: what the tensors that change are written as; by default each keeps its own dtype.

    Raises:
        MergeError: one of its subclasses, each of which says what to do; the inputs are only read.
    """
    checkpoint, lora = open_checkpoint(base), open_adapter(adapter)
    matcher = Matcher(checkpoint, lora)
    matches = [matcher.match(pair) for pair in lora.pairs]
    fused = [(match.pair.module, match.layouts) for match in matches if match.stack is not None]
    layout = decide_io_layout(fused, peft_version=lora.config.peft_version, flag=io_layout) if fused else None
    packing = decide_b_packing(lora.config.lora_B_layout, b_packing) if fused else None
    uses = tuple(matcher.use(match, layout, packing) for match in matches)
    found: dict[str, list[Region]] = {}
    for number, match in enumerate(matches):
        for key, region in _regions(match, number):
            found.setdefault(key, []).append(region)
    rows = _rows(checkpoint, found, uses)
    reached = frozenset(stem for match in matches for stem in match.stems)
    notes = lora.config.notes + check_coverage(checkpoint, lora, matcher.experts, reached)
    return MergePlan(
        base=checkpoint,
        adapter=lora,
        uses=uses,
        rows=rows,
        io_layout=layout,
        b_packing=packing,
        dtype=dtype,
        notes=notes,
    )
