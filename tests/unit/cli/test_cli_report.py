"""``harness report`` over a folder: what was planned there and never had a result makes it red."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.setup import load_setup
from harness.errors import ConfigurationError
from harness.execution.finalise import StackRecord, without_worker
from harness.execution.redact import Redactor
from harness.execution.store import ResultStore
from harness.matrix.cell import Cell
from harness.matrix.plan import Selection, plan_cells
from harness.result import CellResult

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


@pytest.mark.parametrize("count", [1, 3, 8])
def test_the_report_of_all_shards_is_the_report_of_the_whole(tmp_path: Path, count: int) -> None:
    """Each cell is in it once, and a shard that is given twice is refused."""
    setup = load_setup(ROOT / "matrix.toml")
    whole = plan_cells(setup.config, setup.catalogue, Selection())
    for number in range(1, count + 1):
        store = ResultStore(tmp_path / f"shard-{number}")
        for cell in plan_cells(setup.config, setup.catalogue, Selection(shard=(number, count))):
            store.save(_a_result(cell))
    shards = [str(tmp_path / f"shard-{number}") for number in range(1, count + 1)]
    report = tmp_path / "report"
    done = CliRunner().invoke(app, ["report", *shards, "--out", str(report)])
    again = CliRunner().invoke(app, ["report", *shards, str(_copy(tmp_path)), "--out", str(tmp_path / "again")])

    assert done.exit_code in {0, 1}, done.output
    rows = json.loads((report / "report.json").read_text())["rows"]
    assert sorted(row["cell"] for row in rows) == sorted(cell.id for cell in whole)
    assert isinstance(again.exception, ConfigurationError)
    assert "more than one result" in again.exception.message


def _a_result(cell: Cell) -> CellResult:
    return without_worker(
        cell,
        outcome="unresolvable",
        stage="resolve",
        reason="for some reason",
        stack=StackRecord(),
        redactor=Redactor({}),
        started="2026-11-27T00:00:00+00:00",
    )


def _copy(folder: Path) -> Path:
    return Path(shutil.copytree(folder / "shard-1", folder / "copy"))
