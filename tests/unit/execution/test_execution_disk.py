"""What a cell does to its files is its own affair; what this machine cannot write is the run's."""

from __future__ import annotations

import tempfile
from pathlib import Path

import pytest
from execution_helpers import Recorder, cell, services
from warm_helpers import warm_package

from harness.execution.executors import local
from harness.execution.scheduler import run_cells

NO_SPACE = OSError(28, "No space left on device", "somewhere")


@pytest.mark.parametrize("keep", [False, True])
@pytest.mark.parametrize("recipe", ["makes-its-observation-a-directory", "removes-its-work"])
def test_files_that_a_cell_spoils_are_a_problem_of_that_cell(tmp_path: Path, recipe: str, keep: bool) -> None:
    warm_package(tmp_path)
    report = run_cells([cell(recipe), cell("passes")], services(tmp_path), Recorder(), keep=keep)

    assert [result.outcome for result in report.results] == ["error", "pass"]
    assert (report.results[0].reason or "").startswith("the worker wrote no observation")


def full(*arguments: object, **more: object) -> str:
    """In place of what writes."""
    del arguments, more
    raise NO_SPACE


def refused(folder: Path) -> str | None:
    """Run a cell that has no room; return the reason in its result."""
    report = run_cells([cell("passes")], services(folder), Recorder())
    [result] = report.results
    [(stack, error)] = report.environment_failures

    assert (result.outcome, result.stage) == ("environment", "import")
    assert (stack, error.exit_code) == (cell().stack, 4)
    assert error.remedy is not None
    return result.reason


def test_a_full_disk_is_an_error_of_the_environment(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The run goes on, and has the exit code of an environment that cannot be made."""
    services(tmp_path)
    monkeypatch.setattr(local.WorkerRequest, "write", full)
    assert refused(tmp_path) == "a cell's request cannot be written: No space left on device"
    assert list((tmp_path / "scratch").iterdir()) == []

    real = tempfile.mkdtemp
    monkeypatch.setattr(
        tempfile, "mkdtemp", lambda *args, **more: full() if more.get("prefix") == "warm-" else real(*args, **more)
    )
    assert refused(tmp_path) == "a warm worker's directory cannot be written: No space left on device"
    monkeypatch.setattr(
        tempfile, "mkdtemp", lambda *args, **more: full() if more.get("prefix") == "cell-" else real(*args, **more)
    )
    assert refused(tmp_path) == "a cell's work directory cannot be written: No space left on device"


def test_a_log_that_cannot_be_written_is_an_error_of_the_environment(tmp_path: Path) -> None:
    (tmp_path / "out" / "cells" / "qwen3_moe" / f"{cell('passes').file_stem}.log.running").mkdir(parents=True)

    assert refused(tmp_path) == "a cell's log cannot be written: Is a directory"
