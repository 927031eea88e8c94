"""Durations are read from whatever lies where results should be."""

from __future__ import annotations

import json
import os
from pathlib import Path

import pytest

from harness.execution.durations import recorded_costs, recorded_seconds


def write(folder: Path, cell_id: str, seconds: object, *, written: float = 1000.0, name: str = "a.json") -> None:
    path = folder / "cells" / "alpha" / name
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(json.dumps({"cell_id": cell_id, "timings": {"cell": seconds, "worker": 1.0}}), encoding="utf-8")
    os.utime(path, (written, written))


def test_what_was_written_last_counts(tmp_path: Path) -> None:
    write(tmp_path / "old", "alpha/lora@s", 10)
    write(tmp_path / "new", "alpha/lora@s", 20.5, written=2000)
    write(tmp_path / "new" / "shard", "beta/lora@s", 5)

    found = {"alpha/lora@s": 20.5, "beta/lora@s": 5.0}
    assert recorded_seconds([tmp_path / "old", tmp_path / "new"]) == found
    assert recorded_seconds([tmp_path / "new", tmp_path / "old"]) == found
    assert recorded_seconds([tmp_path / "absent"]) == {}


def test_a_cost_is_time_and_memory(tmp_path: Path) -> None:
    write(tmp_path, "alpha/lora@s", 10)
    path = tmp_path / "cells" / "alpha" / "b.json"
    for peak, known in ((512.5, {"beta/lora@s": (3.0, 512.5)}), (None, {}), ("1", {}), (-1, {})):
        path.write_text(json.dumps({"cell_id": "beta/lora@s", "timings": {"cell": 3}, "peak_rss_mb": peak}))
        assert recorded_costs([tmp_path]) == known
        assert recorded_seconds([tmp_path]) == {"alpha/lora@s": 10.0, "beta/lora@s": 3.0}


@pytest.mark.parametrize(
    "content",
    ["", "[]", "{", '{"cell_id": "a"}', '{"cell_id": 1, "timings": {"cell": 2}}', '{"cell_id": "a", "timings": [1]}',
     '{"cell_id": "a", "timings": {"cell": "1"}}', '{"cell_id": "a", "timings": {"cell": NaN}}',
     '{"cell_id": "a", "timings": {"cell": -1}}', '{"cell_id": "a", "timings": {"cell": Infinity}}', "[" * 5000],
)  # fmt: skip
def test_what_is_no_result_says_nothing(tmp_path: Path, content: str) -> None:
    write(tmp_path, "alpha/lora@s", 10)
    (tmp_path / "cells" / "alpha" / "b.json").write_text(content, encoding="utf-8")

    assert recorded_seconds([tmp_path]) == {"alpha/lora@s": 10.0}
