"""``harness report`` over a folder: what was planned there and never had a result makes it red."""

from __future__ import annotations

import json
from pathlib import Path

from typer.testing import CliRunner

from harness.cli import app
from harness.cli.setup import load_setup
from harness.execution.store import ResultStore
from harness.matrix.plan import Selection, plan_cells

ROOT = Path(__file__).resolve().parents[3]


def test_the_report_of_a_folder_shows_what_was_planned_and_not_run(tmp_path: Path) -> None:
    setup = load_setup(ROOT / "matrix.toml")
    cells = plan_cells(setup.config, setup.catalogue, Selection(profile="smoke"))
    ResultStore(tmp_path / "run").plan(cells)
    arguments = ["report", str(tmp_path / "run"), "--out", str(tmp_path / "report")]
    done = CliRunner().invoke(app, arguments)
    report = json.loads((tmp_path / "report" / "report.json").read_text())

    assert done.exit_code == 1, done.output
    assert f"{len(cells)} not run" in done.output
    assert "The command that planned them does the rest." in done.output
    assert report["summary"]["colour"] == "red"
    assert {row["result"]["cell_id"] for row in report["rows"]} == {cell.id for cell in cells}
