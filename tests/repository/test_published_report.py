"""The reports that are committed, and what README says the first of them shows."""

from __future__ import annotations

import json
import re
from pathlib import Path
from typing import Any

import pytest

from harness.evidence import missing_evidence
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.plan import Selection, plan_cells
from harness.result import CellResult

ROOT = Path(__file__).resolve().parents[2]
REPORTS = ROOT / "reports"
PUBLISHED = {"default": Selection(), "qlora": Selection(profile="nightly", select=("*qlora*",))}
"""By folder: what was selected."""

every_report = pytest.mark.parametrize("name", PUBLISHED)


def _rows(name: str) -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = json.loads((REPORTS / name / "report.json").read_text(encoding="utf-8"))["rows"]
    return rows


def _results(name: str) -> list[CellResult]:
    return [CellResult.model_validate(row["result"]) for row in _rows(name)]


@every_report
def test_it_is_what_was_selected_and_all_of_it(name: str) -> None:
    cells = plan_cells(load_config(ROOT / "matrix.toml", read_catalogue()), read_catalogue(), PUBLISHED[name])

    assert {result.cell_id for result in _results(name)} == {cell.id for cell in cells}


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

    assert loaded
    for result in loaded:
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
