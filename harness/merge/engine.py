"""The merge itself, readable top to bottom: check, write each shard, copy the rest, count, publish by one rename."""

from __future__ import annotations

import json
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from harness.merge.checkpoint import CONFIG_FILE, INDEX_FILE, MANIFEST_FILE
from harness.merge.copying import copy_file, write_file
from harness.merge.deltas import Merger, Outcome
from harness.merge.errors import IncompleteMergeError
from harness.merge.json_file import read_object
from harness.merge.manifest import build_manifest, status_of
from harness.merge.outputs import OutputShard, output_shard, weight_map
from harness.merge.publish import check_target, publish, working_directory
from harness.merge.records import MergePlan
from harness.merge.report import Counts, MergeReport
from harness.merge.shard import write_shard
from harness.merge.sources import AdapterValues, BaseValues, Files

Progress = Callable[[int, int], None]


def _rewritten(plan: MergePlan, shards: tuple[OutputShard, ...]) -> dict[str, bytes]:
    """Return the files that change beside the shards: config.json's settings, and the index's sizes and places."""
    files: dict[str, bytes] = {}
    if all(shard.header is None for shard in shards) and not plan.config:
        return files
    config = _config(plan)
    if config != plan.base.config:
        files[CONFIG_FILE] = _json(config)
    if INDEX_FILE in plan.base.files:
        index: dict[str, Any] = dict(read_object(plan.base.root / INDEX_FILE))
        metadata = index.get("metadata")
        total = sum(shard.data_size for shard in shards)
        index["metadata"] = {**(metadata if isinstance(metadata, dict) else {}), "total_size": total}
        places = weight_map(shards)
        if places != index["weight_map"]:
            index["weight_map"] = dict(sorted(places.items()))
        files[INDEX_FILE] = _json(index)
    return files


def _config(plan: MergePlan) -> dict[str, Any]:
    """Return config.json with what the merge changes: the dtype that was asked for, and the plan's own settings.

    A setting changes in ``text_config`` as well where it stands there; None removes it.
    """
    config: dict[str, Any] = dict(plan.base.config)
    sections = [config]
    if isinstance(config.get("text_config"), dict):
        config["text_config"] = dict(config["text_config"])
        sections.append(config["text_config"])
    changes: dict[str, object] = dict(plan.config)
    converted = any(row.dtype != plan.base.info(row.key).dtype for row in plan.rows if row.key in plan.base)
    if plan.dtype is not None and (converted or plan.quantization):
        names = {name for section in sections for name in ("torch_dtype", "dtype") if name in section} or {
            "torch_dtype"
        }
        changes |= dict.fromkeys(sorted(names), plan.dtype)
    for name, value in changes.items():
        for section in [section for section in sections if name in section] or [config]:
            if value is None:
                section.pop(name, None)
            else:
                section[name] = value
    if "tie_word_embeddings" in plan.config:
        config["tie_word_embeddings"] = plan.config["tie_word_embeddings"]
    return config


def _keys(plan: MergePlan) -> list[str]:
    return [row.key for row in plan.rows]


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()


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
    target = check_target(out, overwrite=overwrite, inputs=(base.root, *(part.adapter.root for part in plan.parts)))
    shards = tuple(output_shard(plan, number) for number in range(len(base.shards)))
    rewritten = _rewritten(plan, shards)
    total, done = sum(shard.size for shard in shards), 0

    def advance(count: int) -> None:
        nonlocal done
        done += count
        if progress is not None:
            progress(done, total)

    with Files() as files:
        adapters = AdapterValues(plan, files)
        adapters.check_finite()
        merger = Merger(plan, BaseValues(plan, files), adapters)
        with working_directory(target) as work:
            outcomes: dict[str, Outcome] = {}
            for number, shard in enumerate(shards):
                outcomes |= write_shard(plan, files, merger, number, shard, work, advance)
            for relative in base.files:
                if relative in rewritten:
                    write_file(work / relative, rewritten[relative])
                else:
                    copy_file(base.root / relative, work / relative, what=relative)
            report = _report(plan, outcomes, done)
            write_file(work / MANIFEST_FILE, build_manifest(plan, report, outcomes))
            publish(work, target)
    return report
