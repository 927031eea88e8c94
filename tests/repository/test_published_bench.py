"""The measurements that are committed, if there are any, and what README shows of them."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.bench.case import case_names, load_case
from harness.bench.readme import main
from harness.bench.report import render, settings_of

ROOT = Path(__file__).resolve().parents[2]
PUBLISHED = ROOT / "reports" / "bench"


def test_readme_shows_what_was_measured() -> None:
    options = ["--readme", str(ROOT / "README.md"), "--report", str(PUBLISHED / "report.md")]

    assert main(["--check", *options]) == 0, "python -m harness.bench.readme --write"


@pytest.mark.skipif(not PUBLISHED.exists(), reason="no run has been published")
def test_the_published_report_is_of_a_full_run() -> None:
    results = json.loads((PUBLISHED / "results.json").read_text("utf-8"))
    settings = settings_of(results)
    wanted = {step.name for name in case_names() for step in load_case(name).steps(settings)}

    assert not settings.quick
    assert results["cases"] == list(case_names())
    assert results["steps"].keys() == wanted
    assert render(results) == (PUBLISHED / "report.md").read_text("utf-8")
