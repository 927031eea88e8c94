"""Planting a fault in a merge: its site is made ready, then the fault breaks it.

The engine merges where there is something to merge.
What the fault knows of the deltas is PEFT's own (``stages.deltas``). What lies where on disk is the checkpoint's own
description. So the engine under test has no part in a fault of the merged directory.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.faults import Facts, MergeFault, fault
from harness.faults.fault import Site, being_planted
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Request
from harness.worker.stages.deltas import DELTAS, PAIRS, SCALINGS
from harness.worker.stages.merge import merge_with_engine
from harness.worker.stages.rewriting import write_like
from harness.worker.stages.shards import read_weights
from harness.worker.stages.tensor_gate import on_disk
from harness.worker.stages.vocabulary import HEAD_KEY, Vocabulary


class FaultDoesNotApplyError(ValueError):
    """In this cell the fault would be a right merge."""


def facts_of(adapter: Mapping[str, Any], request: Request) -> Facts:
    """Return the facts of this cell; ``adapter`` is what the save stage recorded."""
    return Facts.of(adapter, dtype=request.dtype, quantized=recipe(request.recipe).quantization is not None)


def merge_as_asked(
    request: Request, checkpoint: Checkpoint, adapter: Mapping[str, Any], *, out: Path, base: Path | None = None
) -> dict[str, Any]:
    """Make the cell's own merge, with the fault in it that was asked for, and return what the engine says and took.

    A fault of the merged directory takes the place of what the engine left, whose claims stay. An engine which is wrong
    and does not know it looks like that.
    """
    planted = fault(request.fault) if request.fault is not None else None
    if request.fault is None or not isinstance(planted, MergeFault):
        return merge_with_engine(request, out=out, base=base)
    if planted.where != "merged":
        return merge_with_fault(request.fault, request, checkpoint, adapter, out=out, base=base)
    said = merge_with_engine(request, out=out, base=base)
    shutil.rmtree(out)
    merge_with_fault(request.fault, request, checkpoint, adapter, out=out, base=base)
    return said


def merge_with_fault(
    name: str,
    request: Request,
    checkpoint: Checkpoint,
    adapter: Mapping[str, Any],
    *,
    out: Path,
    base: Path | None = None,
) -> dict[str, Any]:
    """Make a merged directory with a fault in it, and return what the engine says; nothing where none ran.

    Args:
        name: the fault.
        request: the cell.
        checkpoint: what the base is.
        adapter: what the save stage recorded of the adapter.
        out: the directory to make; must not exist.
        base: another base than the cell's.

    Raises:
        FaultDoesNotApplyError: it is no fault here.
    """
    from safetensors.torch import load_file

    planted, facts, source = fault(name), facts_of(adapter, request), base or request.base
    if not isinstance(planted, MergeFault) or not planted.applies(facts):
        raise FaultDoesNotApplyError(f"fault {name} breaks nothing here: {facts}")
    copy = out.with_name(f"{out.name}-adapter")
    shutil.copytree(request.adapter, copy)

    trained = load_file(request.work / DELTAS)
    vocabulary = Vocabulary.of(checkpoint, trained)

    def write(deltas: Mapping[str, Any]) -> None:
        _write_merge(vocabulary, source, out, deltas)

    site = Site(
        facts=facts,
        base=source,
        adapter=copy,
        merged=out,
        pairs=json.loads((request.work / PAIRS).read_text()),
        scalings=json.loads((request.work / SCALINGS).read_text()),
        deltas=trained,
        write=write,
    )
    with being_planted(name):
        planted.plant(site)
    said = {} if planted.where == "merged" else merge_with_engine(request, out=out, base=base, adapter=copy)
    shutil.rmtree(copy)
    return said


def _write_merge(vocabulary: Vocabulary, base: Path, out: Path, deltas: Mapping[str, Any]) -> None:
    """Write base + deltas, added in float64 and rounded once to the dtype of each tensor."""
    parts = {key: delta for key, (_, delta) in on_disk(vocabulary.checkpoint, dict(deltas), base).items()}

    def summed(key: str, tensor: Any) -> Any:
        return (tensor.double() + parts[key]).to(tensor.dtype) if key in parts else tensor

    before = vocabulary.before(read_weights(base).tensors)
    write_like(base, out, lambda key, tensor: summed(key, before[key] if vocabulary.config else tensor))
    vocabulary.finish(out, summed(HEAD_KEY, before[HEAD_KEY]) if vocabulary.untied is not None else None)
