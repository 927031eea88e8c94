"""The JSON files of the output that are not copies: config.json's settings, and the index's sizes and places."""

from __future__ import annotations

import json
from collections.abc import Mapping
from typing import Any

from harness.merge.base.checkpoint import CONFIG_FILE, INDEX_FILE
from harness.merge.files.json_file import read_object
from harness.merge.plan.merge_plan import MergePlan
from harness.merge.plan.output_shards import OutputShard, weight_map


def rewritten_files(plan: MergePlan, shards: tuple[OutputShard, ...]) -> dict[str, bytes]:
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


def _json(value: Mapping[str, object]) -> bytes:
    return (json.dumps(value, indent=2, ensure_ascii=False) + "\n").encode()
