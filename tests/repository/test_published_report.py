"""The report that is committed, and what README says it shows."""

from __future__ import annotations

import json
import re
from pathlib import Path

from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.plan import Selection, plan_cells
from harness.result import CellResult, missing_evidence

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "reports" / "default"


def _results() -> list[CellResult]:
    report = json.loads((PUBLISHED / "report.json").read_text(encoding="utf-8"))
    return [CellResult.model_validate(row["result"]) for row in report["rows"]]


def test_it_is_the_default_profile_and_all_of_it() -> None:
    cells = plan_cells(load_config(ROOT / "matrix.toml", read_catalogue()), read_catalogue(), Selection())

    assert {result.cell_id for result in _results()} == {cell.id for cell in cells}


def test_every_pass_in_it_has_its_evidence() -> None:
    passed = [result for result in _results() if result.outcome == "pass"]

    assert passed
    assert [(result.cell_id, missing_evidence(result)) for result in passed if missing_evidence(result)] == []


def test_nothing_unexpected_was_published() -> None:
    rows = json.loads((PUBLISHED / "report.json").read_text(encoding="utf-8"))["rows"]

    assert {row["status"] for row in rows} <= {"ok", "known-failure"}


def test_readme_shows_its_overview_and_its_sentence() -> None:
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    markdown = (PUBLISHED / "report.md").read_text(encoding="utf-8")
    table = re.search(r"\| transformers / peft / trl.*?(?=\n\n)", markdown, re.DOTALL)
    sentence = re.search(r"^\*\*.*$", markdown, re.MULTILINE)

    assert table is not None
    assert table[0] in readme
    assert sentence is not None
    assert sentence[0] in readme
