"""The reference merge engine: a PEFT LoRA adapter merged into a safetensors checkpoint, without loading a model.

``plan_merge`` reads headers and configurations and decides everything. It needs no torch. ``merge`` streams the bytes,
adds in float32, rounds once, and publishes by one rename or not at all. It works on any directory in the published
layouts of the families it knows. It needs torch and no other library, and imports nothing else of this project.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Literal

from harness.merge.adapter.layout import BPacking, Decision, IoLayout
from harness.merge.auditing.report import AuditReport
from harness.merge.auditing.tensor_verdict import TensorVerdict
from harness.merge.errors import (
    IncompleteMergeError,
    InputRefusedError,
    MergeError,
    OutputExistsError,
    UsageError,
)
from harness.merge.files.any_path import AnyPath
from harness.merge.plan.merge_plan import MergePlan
from harness.merge.plan.planner import plan_merge
from harness.merge.run.report import Counts, MergeReport, PartReport

__all__ = [
    "AuditReport",
    "Counts",
    "Decision",
    "IncompleteMergeError",
    "InputRefusedError",
    "MergeError",
    "MergePlan",
    "MergeReport",
    "OutputExistsError",
    "PartReport",
    "TensorVerdict",
    "UsageError",
    "assemble",
    "audit",
    "merge",
    "merge_part",
    "plan_merge",
]


def merge(
    plan: MergePlan,
    out: AnyPath,
    *,
    overwrite: bool = False,
    resume: bool = False,
    accumulate: Literal["float32", "float64"] = "float32",
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Carry out a plan and publish the merged checkpoint at ``out``.

    Untouched tensors are copied byte for byte; key set, shard names, dtypes and all other files are the base's, and
    ``merge_manifest.json`` is added. With a dtype override only tensors that change are converted, and config.json's
    dtype follows. Weights in other formats (.bin, .gguf, …) are not copied: they would still be the base's.

    torch's number of threads is 1 while it runs, and is set back.

    Args:
        plan: from ``plan_merge``.
        out: the output directory; its missing parents are made.
        overwrite: replace an existing checkpoint there, in one step.
        resume: go on with what an unfinished merge of the same inputs to the same output left, each shard verified by
            its hash; and keep what is finished if this one fails.
        accumulate: the dtype that base and deltas are summed in, before they are rounded once.
        device: where the arithmetic is done, as torch names it.
        threads: how many pieces are worked on at once; by default as many as this process may use cores, at most 16.
        progress: called in this thread, several times a second, with (bytes written so far, bytes in all) of the
            shards.

    Raises:
        MergeError: one of its subclasses; then nothing new is at ``out``, and what was there still is.
    """
    from harness.merge.run.engine import ComputeOptions, run_merge  # noqa: PLC0415 - torch is imported when it is used: a plan needs none

    compute = ComputeOptions(accumulate=accumulate, device=device, threads=threads)
    return run_merge(plan, Path(out), overwrite=overwrite, resume=resume, compute=compute, progress=progress)


def merge_part(
    plan: MergePlan,
    out: AnyPath,
    *,
    part: int,
    parts: int,
    overwrite: bool = False,
    resume: bool = False,
    accumulate: Literal["float32", "float64"] = "float32",
    device: str = "cpu",
    threads: int | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> PartReport:
    """Write part ``part`` (from 1) of ``parts`` of the output, its share of the shards, and publish it beside ``out``.

    The part is the directory ``OUT.part-I-of-N``. When all are there, ``assemble`` makes the output of them. Everything
    else is as for ``merge``.

    Raises:
        MergeError: one of its subclasses; then there is no new part.
    """
    from harness.merge.run.engine import ComputeOptions  # noqa: PLC0415 - as above
    from harness.merge.run.parts import run_part  # noqa: PLC0415

    compute = ComputeOptions(accumulate=accumulate, device=device, threads=threads)
    return run_part(
        plan, Path(out), part=part, parts=parts, overwrite=overwrite, resume=resume, compute=compute, progress=progress
    )


def assemble(
    plan: MergePlan,
    out: AnyPath,
    *,
    overwrite: bool = False,
    accumulate: Literal["float32", "float64"] = "float32",
    progress: Callable[[int, int], None] | None = None,
) -> MergeReport:
    """Check the parts that ``merge_part`` wrote beside ``out``, publish what they make, and remove them.

    Args:
        plan: the plan that the parts were written from, made again.
        out: the output directory that was given to them.
        overwrite: replace an existing checkpoint there, in one step.
        accumulate: as it was given to them.
        progress: called with (bytes checked so far, bytes in all).

    Raises:
        MergeError: one of its subclasses: a part is missing, was made for another merge, or is not what was written.
            The parts stay.
    """
    from harness.merge.run.engine import ComputeOptions  # noqa: PLC0415 - as above
    from harness.merge.run.parts import run_assemble  # noqa: PLC0415

    return run_assemble(
        plan, Path(out), overwrite=overwrite, compute=ComputeOptions(accumulate=accumulate), progress=progress
    )


def audit(
    base: AnyPath,
    adapter: AnyPath | Sequence[AnyPath],
    merged: AnyPath,
    *,
    weights: Sequence[float] | None = None,
    io_layout: IoLayout | None = None,
    b_packing: BPacking | None = None,
    progress: Callable[[int, int], None] | None = None,
) -> AuditReport:
    """Say of each tensor of a merged checkpoint, whoever made it, whether it holds what was trained.

    Streams the three directories; each file is read once, apart from tensors that turn out wrong, which are read again
    to find out what they hold instead.

    Args:
        base: directory of the base checkpoint (safetensors).
        adapter: directory of the PEFT LoRA adapter, or several, whose deltas add up as for ``plan_merge``.
        merged: directory of the merged checkpoint, experts fused or not, under either prefix, in any float dtype.
        weights: what each adapter's deltas are multiplied by, 1 by default.
        io_layout: settles the adapter's io layout where shapes and provenance leave it open.
        b_packing: overrides how lora_B is packed.
        progress: called with (bytes of the base compared so far, bytes in all).

    Raises:
        MergeError: one of its subclasses: base or adapter cannot be planned with, or the merged directory cannot be
            read safely.
    """
    from harness.merge.auditing.walk import run_audit  # noqa: PLC0415 - torch is imported when it is used

    return run_audit(
        base, adapter, merged, weights=weights, io_layout=io_layout, b_packing=b_packing, progress=progress
    )
