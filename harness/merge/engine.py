"""The merge itself, readable top to bottom: check, write each shard, copy the rest, count, publish by one rename."""

from __future__ import annotations

import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.merge.checkpoint import CONFIG_FILE, INDEX_FILE, MANIFEST_FILE
from harness.merge.copying import copy_file, write_file
from harness.merge.deltas import Factors, Outcome, open_adapter_file
from harness.merge.errors import IncompleteMergeError, InputChangedError
from harness.merge.json_file import read_object
from harness.merge.manifest import build_manifest, status_of
from harness.merge.publish import check_target, publish, working_directory
from harness.merge.records import MergePlan
from harness.merge.report import Counts, MergeReport
from harness.merge.safetensors_file import read_header
from harness.merge.shard import output_dtype, output_layout, write_shard

Progress = Callable[[int, int], None]


def _rewritten(plan: MergePlan, data_size: int) -> dict[str, bytes]:
    """Return the files that a dtype override changes: config.json's dtype, and the index's total size."""
    if plan.dtype is None or all(output_dtype(plan, info) == info.dtype for info in map(plan.base.info, _keys(plan))):
        return {}
    config: dict[str, Any] = dict(plan.base.config)
    sections = [config]
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = dict(config["text_config"])
        sections.append(config["text_config"])
    for section in sections:
        for name in ("torch_dtype", "dtype"):
            if name in section:
                section[name] = plan.dtype
    if not any(name in section for section in sections for name in ("torch_dtype", "dtype")):
        config["torch_dtype"] = plan.dtype
    files = {CONFIG_FILE: _json(config)}
    if INDEX_FILE in plan.base.files:
        index: dict[str, Any] = dict(read_object(plan.base.root / INDEX_FILE))
        metadata = index.get("metadata")
        index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": data_size}
        files[INDEX_FILE] = _json(index)
    return files


def _keys(plan: MergePlan) -> list[str]:
    return [row.key for row in plan.rows]


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


def _check_adapter(plan: MergePlan) -> None:
    now = read_header(plan.adapter.file.path, name=plan.adapter.file.name)
    if (now.size, now.header_sha256) != (plan.adapter.file.size, plan.adapter.file.header_sha256):
        raise InputChangedError("the adapter is no longer the one that was planned with.", "Plan and merge again.")


def _report(plan: MergePlan, outcomes: Mapping[str, Outcome], written: int) -> MergeReport:
    """Count what happened; every planned tensor must have been written, and nothing else.

    Raises:
        IncompleteMergeError: the count does not add up.
    """
    if outcomes.keys() != set(_keys(plan)) or len(outcomes) != plan.attempted:
        raise IncompleteMergeError(f"{plan.attempted} tensors were planned and {len(outcomes)} written.")
    by_kind: dict[str, Counts] = {}
    for row in plan.rows:
        status = status_of(outcomes[row.key])
        one = Counts(attempted=1, **{status: 1})
        by_kind[row.kind] = by_kind.get(row.kind, Counts()) + one
    return MergeReport(
        by_kind=by_kind,
        io_layout=plan.io_layout,
        b_packing=plan.b_packing,
        notes=plan.notes,
        files_left_out=plan.base.left_out,
        bytes_written=written,
    )


def run_merge(plan: MergePlan, out: Path, *, overwrite: bool, progress: Progress | None) -> MergeReport:
    """Carry out a plan; see ``harness.merge.merge``."""
    base = plan.base
    target = check_target(out, overwrite=overwrite, inputs=(base.root, plan.adapter.root))
    _check_adapter(plan)
    rows: list[dict[str, Any]] = [{} for _ in base.shards]
    for row in plan.rows:
        rows[row.shard][row.key] = row
    layouts = [output_layout(plan, shard, rows[number]) for number, shard in enumerate(base.shards)]
    rewritten = _rewritten(plan, sum(layout.data_size for layout in layouts))
    total, done = sum(layout.size for layout in layouts), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    descriptor = open_adapter_file(plan)
    try:
        factors = Factors(plan, descriptor)
        factors.check_finite()
        with working_directory(target) as work:
            outcomes: dict[str, Outcome] = {}
            for number in range(len(base.shards)):
                outcomes |= write_shard(plan, factors, number, work, advance)
            for relative in base.files:
                if relative in rewritten:
                    write_file(work / relative, rewritten[relative])
                else:
                    copy_file(base.root / relative, work / relative, what=relative)
            report = _report(plan, outcomes, done)
            write_file(work / MANIFEST_FILE, build_manifest(plan, report, outcomes))
            publish(work, target)
    finally:
        os.close(descriptor)
    return report
