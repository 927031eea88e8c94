"""Daemons of a cell: found without a token, in no group of ours, and counted while the cell lives."""

from __future__ import annotations

from pathlib import Path

import pytest
from execution_helpers import Recorder, alive, cell, services
from warm_helpers import warm_package

from harness.execution.runner import ProcessOrigin
from harness.execution.scheduler import run_cells
from harness.execution.supervise import Limits


@pytest.mark.parametrize("processes", ["warm", "fresh"])
@pytest.mark.parametrize(
    ("recipe", "outcome"),
    [("clean-daemon", "pass"), ("clean-daemon-and-death", "crash"), ("clean-daemon-and-hang", "timeout")],
)
def test_a_daemon_with_a_clean_environment_ends_with_its_cell(
    tmp_path: Path, processes: ProcessOrigin, recipe: str, outcome: str
) -> None:
    warm_package(tmp_path)
    limits = Limits(seconds=3 if outcome == "timeout" else 60, grace=0.2, interval=0.05)
    report = run_cells([cell(recipe)], services(tmp_path, limits=limits), Recorder(), processes=processes)

    assert report.results[0].outcome == outcome
    assert not alive(int((tmp_path / "scratch" / "clean").read_text()))


@pytest.mark.parametrize("processes", ["warm", "fresh"])
def test_the_memory_of_a_daemon_is_its_cell_s(tmp_path: Path, processes: ProcessOrigin) -> None:
    warm_package(tmp_path)
    limits = Limits(seconds=60, memory_mb=160, interval=0.05)
    report = run_cells([cell("greedy-daemon")], services(tmp_path, limits=limits), Recorder(), processes=processes)

    assert (report.results[0].outcome, report.results[0].stage) == ("oom", "train")


def test_a_daemon_of_one_cell_does_not_cost_its_neighbour_a_process(tmp_path: Path) -> None:
    """What a warm worker adopts of an ended cell is ended; the children of a living one are not touched."""
    warm_package(tmp_path)
    plan = [cell("clean-daemon"), cell("slow"), cell("slow", seed=1), cell("clean-daemon", seed=1)]
    report = run_cells(plan, services(tmp_path), Recorder(), jobs=3)

    assert [result.outcome for result in report.results] == ["pass"] * 4
