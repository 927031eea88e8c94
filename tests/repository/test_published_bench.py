"""The measurements that are committed, if there are any, and what README shows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.bench.case import load_case, usual_cases
from harness.bench.readme import main
from harness.bench.report import render, settings_of
from harness.matrix.catalogue import read_catalogue
from harness.matrix.cell import Cell
from harness.matrix.config import load_config
from harness.matrix.plan import Selection, plan_cells

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "reports" / "bench"
PUBLISHED_CELLS = 79
"""Cells of the default profile when warm workers were measured."""


def test_readme_shows_what_was_measured() -> None:
    options = ["--readme", str(ROOT / "README.md"), "--report", str(PUBLISHED / "report.md")]

    assert main(["--check", *options]) == 0, "python -m harness.bench.readme --write"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="no run has been published")
def test_the_published_report_is_of_a_full_run() -> None:
    results = json.loads((PUBLISHED / "results.json").read_text("utf-8"))
    settings = settings_of(results)
    wanted = {step.name for name in usual_cases() for step in load_case(name).steps(settings)}

    assert not settings.quick
    assert results["cases"] == list(usual_cases())
    assert results["steps"].keys() == wanted
    assert render(results) == (PUBLISHED / "report.md").read_text("utf-8")


def test_warm_workers_were_measured_beside_fresh_processes_in_one_run() -> None:
    results = json.loads((ROOT / "reports" / "cells" / "results.json").read_text("utf-8"))
    ran = results["steps"]["cells"]

    assert results["cases"] == ["cells"]
    assert not settings_of(results).quick
    assert len(ran["warm"]) == len(ran["fresh"]) >= 1
    (count,) = {run["cells"] for run in (*ran["warm"], *ran["fresh"])}
    assert PUBLISHED_CELLS <= count <= len(_default_cells()), "families and recipes that were added since add cells"
    assert ran["different"] == []
    assert render(results) == (ROOT / "reports" / "cells" / "report.md").read_text("utf-8")


def _default_cells() -> tuple[Cell, ...]:
    catalogue = read_catalogue()
    return plan_cells(load_config(ROOT / "matrix.toml", catalogue), catalogue, Selection())
