"""The reports that are committed, and what README says the first of them shows."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest

from harness.evidence import missing_evidence
from harness.matrix.catalogue import read_catalogue
from harness.matrix.cell import Cell
from harness.matrix.config import load_config
from harness.matrix.plan import Selection, plan_cells
from harness.result import CellResult
from harness.worker.recipes.recipe import recipe

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports"
PUBLISHED = {"default": Selection(), "qlora": Selection(profile="nightly", select=("*qlora*",))}
"""By folder: what was selected."""

FAMILIES = {"deepseek_v3", "glm4_moe", "qwen3_5_moe", "qwen3_moe"}
COVERED = {
    "default": {
        "family": FAMILIES,
        "recipe": {
            *("lora", "lora-attention", "lora-down-only", "lora-experts", "lora-gate-up-only"),
            *("lora-patterns", "lora-dora", "lora-two-adapters", "lora-dropout", "lora-two-expert-adapters"),
            *("lora-checkpointing", "lora-padded", "lora-packed", "lora-chat", "lora-resumed", "lora-autocast"),
            *("lora-router", "lora-embeddings", "lora-vocabulary", "lora-modules-to-save", "lora-per-expert"),
            *("lora-bias", "lora-resized", "lora-new-tokens", "plain-after-qlora4"),
            *("module-names", "all-linear", "target-parameters"),
        },
        "engine": {"reference", "peft"},
    },
    "qlora": {
        "family": FAMILIES,
        "recipe": {
            *("qlora4", "qlora4-experts", "qlora4-shimmed", "qlora8", "plain-after-qlora4", "qlora8-after-qlora4"),
        },
        "engine": {"reference", "peft"},
    },
}
"""By folder: what a report has covered once, and so covers always. A new family, recipe or engine may be published
later; it is added here when it is."""

every_report = pytest.mark.parametrize("name", PUBLISHED)


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((REPORTS / name / "report.json").read_text(encoding="utf-8"))["rows"]
    return rows


def _results(name: str) -> list[CellResult]:
    return [CellResult.model_validate(row["result"]) for row in _rows(name)]


def left_out(name: str, planned: Sequence[Cell], published: Sequence[Cell]) -> list[str]:
    """What is missing from a report: names that it has covered once, and ids of cells of what it covers."""
    seen = {field: {getattr(cell, field) for cell in published} for field in COVERED[name]}
    names = [f"{field} {each}" for field in seen for each in sorted(COVERED[name][field] - seen[field])]
    demanded = {cell.id for cell in planned if all(getattr(cell, field) in seen[field] for field in seen)}
    return names + sorted(demanded - {cell.id for cell in published})


def _planned(name: str) -> tuple[Cell, ...]:
    return plan_cells(load_config(ROOT / "matrix.toml", read_catalogue()), read_catalogue(), PUBLISHED[name])


@every_report
def test_it_is_what_was_selected_and_no_part_of_it_is_left_out(name: str) -> None:
    planned, published = _planned(name), [result.cell for result in _results(name)]

    assert {cell.id for cell in published} <= {cell.id for cell in planned}
    assert left_out(name, planned, published) == []


@every_report
def test_a_part_of_a_report_is_none(name: str) -> None:
    """A cell, a shard, an interrupted run, a family or an engine alone; but nothing that is new is demanded."""
    planned = _planned(name)
    new = [cell.model_copy(update={"family": "unheard_of"}) for cell in planned[:5]]

    assert left_out(name, [*planned, *new], planned) == []
    assert left_out(name, planned, planned[1:]) == [planned[0].id]
    for part in (planned[: len(planned) // 2], planned[-3:], [cell for cell in planned if cell.family == "glm4_moe"]):
        assert left_out(name, planned, part)
    assert "engine peft" in left_out(name, planned, [cell for cell in planned if cell.engine == "reference"])


@every_report
def test_every_pass_in_it_has_its_evidence(name: str) -> None:
    passed = [result for result in _results(name) if result.outcome == "pass"]

    assert passed
    assert [(result.cell_id, missing_evidence(result)) for result in passed if missing_evidence(result)] == []


@every_report
def test_nothing_unexpected_was_published(name: str) -> None:
    assert {row["status"] for row in _rows(name)} <= {"ok", "known-failure"}


def test_every_base_of_the_qlora_report_was_quantised() -> None:
    loaded = [result for result in _results("qlora") if result.outcome != "unsupported"]
    quantised = [result for result in loaded if recipe(result.cell.recipe).quantization is not None]

    assert {result.cell.recipe for result in loaded} - {result.cell.recipe for result in quantised} == {
        "plain-after-qlora4"
    }
    for result in quantised:
        assert result.quantization is not None, result.cell_id
        assert result.quantization.kinds["experts"].plain == 0 < result.quantization.kinds["experts"].quantized


def test_readme_shows_its_overview_and_its_sentence() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    markdown = (REPORTS / "default" / "report.md").read_text(encoding="utf-8")
    table = re.search(r"\| transformers / peft / trl.*?(?=\n\n)", markdown, re.DOTALL)
    sentence = re.search(r"^\*\*.*$", markdown, re.MULTILINE)

    assert table is not None
    assert table[0] in readme
    assert sentence is not None
    assert sentence[0] in readme
