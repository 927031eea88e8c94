"""The case that measures warm workers: which results it reads, and what it calls a difference."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from harness.bench.cases.cells import by_cell, different


def _result(cell_id: str, *, outcome: str = "pass", passed: bool = True, value: float = 1.0) -> dict[str, Any]:
    checks = [{"name": "kl", "stage": "compare", "passed": passed, "value": value}]
    return {"cell_id": cell_id, "outcome": outcome, "stage": None, "checks": checks}


def test_families_with_the_same_recipe_and_stack_are_cells_of_their_own(tmp_path: Path) -> None:
    for family in ("qwen3_moe", "glm4_moe"):
        folder = tmp_path / "cells" / family
        folder.mkdir(parents=True)
        (folder / "lora@tf1.json").write_text(json.dumps(_result(f"{family}/lora@tf1")))

    assert set(by_cell(tmp_path)) == {"qwen3_moe/lora@tf1", "glm4_moe/lora@tf1"}


def test_what_differs_is_the_outcome_or_a_check_and_not_a_value_within_its_band() -> None:
    one = {"a": _result("a"), "b": _result("b"), "c": _result("c"), "d": _result("d")}
    other = {"a": _result("a", value=2.0), "b": _result("b", outcome="fail"), "c": _result("c", passed=False)}

    assert different(one, one) == []
    assert different(one, other) == ["b", "c", "d"]
