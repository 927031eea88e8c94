"""Cells in real child processes: every way to end is an outcome, and nothing stays behind.

Each test is asked of both ways to get a process: forked by a warm worker, and new for each cell.
"""

from __future__ import annotations

import json
import time
from pathlib import Path

import pytest
from execution_helpers import FakeEnvironment, Recorder, alive, cell, services, wait_until

from harness.execution.runner import ProcessOrigin
from harness.execution.scheduler import run_cells
from harness.execution.supervise import Limits
from harness.result import CellResult


@pytest.fixture(params=["warm", "fresh"])
def processes(request: pytest.FixtureRequest) -> ProcessOrigin:
    """Where the process of a cell comes from."""
    way: ProcessOrigin = request.param
    return way


def run_one(folder: Path, recipe: str, processes: ProcessOrigin, *, limits: Limits | None = None) -> CellResult:
    recorder = Recorder()
    report = run_cells([cell(recipe)], services(folder, limits=limits), recorder, processes=processes)
    assert not [event for event in recorder.events if event[0] == "note"], "the way that was asked for was taken"
    return report.results[0]


def test_a_worker_that_does_all_its_stages_passes(tmp_path: Path, processes: ProcessOrigin) -> None:
    result = run_one(tmp_path, "passes", processes)

    assert (result.outcome, result.stage, result.reason) == ("pass", None, None)
    assert {stage.result for stage in result.stages.values()} == {"pass"}
    assert len(result.stages) == 16
    assert (result.stages["resolve"].seconds, result.stages["install"].seconds) == (0.5, 1.5)
    assert result.lock_sha256 == "a" * 64
    assert result.python == "3.11.7"


def test_result_and_log_lie_where_the_id_says(tmp_path: Path, processes: ProcessOrigin) -> None:
    result = run_one(tmp_path, "passes", processes)
    folder = tmp_path / "out" / "cells" / "qwen3_moe"
    stem = "passes@tf5.5.0-peft0.19.1-trl0.25.1"

    assert sorted(path.name for path in folder.iterdir()) == [f"{stem}.json", f"{stem}.log"]
    assert result.log == f"cells/qwen3_moe/{stem}.log"
    assert CellResult.model_validate_json((folder / f"{stem}.json").read_bytes()) == result
    command, cwd = (folder / f"{stem}.log").read_text().splitlines()
    assert command.startswith("$ ")
    assert " -I -u " in command
    assert cwd.startswith(f"cwd {tmp_path / 'scratch'}/cell-")


def test_work_directories_are_removed_unless_kept(tmp_path: Path, processes: ProcessOrigin) -> None:
    run_cells([cell("passes")], services(tmp_path), Recorder(), processes=processes)
    assert list((tmp_path / "scratch").iterdir()) == []

    run_cells([cell("passes")], services(tmp_path), Recorder(), keep=True, processes=processes)
    work = tmp_path / "scratch" / "qwen3_moe" / cell("passes").file_stem

    request = json.loads((work / "request.json").read_text())
    assert request["cell"]["recipe"] == "passes"
    assert request["bands"] == {"kl_max": 1e-9}


def test_a_work_directory_is_kept_where_it_was_written(tmp_path: Path, processes: ProcessOrigin) -> None:
    """What is in it names it: an adapter names its base."""
    for _ in range(2):
        run_cells([cell("passes")], services(tmp_path), Recorder(), keep=True, processes=processes)
    stem = cell("passes").file_stem
    work = tmp_path / "scratch" / "qwen3_moe" / stem
    log = (tmp_path / "out" / "cells" / "qwen3_moe" / f"{stem}.log").read_text()

    assert log.splitlines()[1] == f"cwd {work}"
    assert work.is_dir()
    assert list((tmp_path / "scratch").iterdir()) == [tmp_path / "scratch" / "qwen3_moe"]


def test_a_hang_is_a_timeout_of_the_stage_it_hangs_in(tmp_path: Path, processes: ProcessOrigin) -> None:
    began = time.monotonic()
    result = run_one(tmp_path, "hangs", processes, limits=Limits(seconds=1.0, grace=0.3, interval=0.05))

    assert time.monotonic() - began < 15
    assert (result.outcome, result.stage) == ("timeout", "train")
    assert result.reason == "no end after 1 s, its time limit"
    assert result.stages["attach"].result == "pass"
    assert result.stages["save"].result == "not_run"
    assert result.stages["save"].reason == "needs train, which ended in timeout"
    assert result.stages["controls"].reason == "needs train, which ended in timeout"


def test_a_worker_that_ignores_sigterm_is_killed(tmp_path: Path, processes: ProcessOrigin) -> None:
    result = run_one(tmp_path, "stubborn", processes, limits=Limits(seconds=0.8, grace=0.2, interval=0.05))

    assert (result.outcome, result.stage) == ("timeout", "merge")


@pytest.mark.parametrize(
    ("recipe", "stage", "signal"), [("killed", "load", "SIGKILL"), ("segfaults", "merge", "SIGSEGV")]
)
def test_a_signal_is_a_crash_of_the_running_stage(
    tmp_path: Path, processes: ProcessOrigin, recipe: str, stage: str, signal: str
) -> None:
    result = run_one(tmp_path, recipe, processes)

    assert (result.outcome, result.stage) == ("crash", stage)
    assert result.reason is not None
    assert result.reason.startswith(f"killed by {signal}")


@pytest.mark.parametrize(("recipe", "stage"), [("greedy", "load"), ("greedy-children", "train")])
def test_memory_is_limited_over_the_whole_process_tree(
    tmp_path: Path, processes: ProcessOrigin, recipe: str, stage: str
) -> None:
    result = run_one(tmp_path, recipe, processes, limits=Limits(seconds=60, memory_mb=160, interval=0.05))

    assert (result.outcome, result.stage) == ("oom", stage)
    assert result.reason is not None
    assert "its memory limit of 160 MiB" in result.reason
    assert result.peak_rss_mb is not None
    assert result.peak_rss_mb > 160


def test_a_garbage_observation_is_an_error_with_the_end_of_the_log(tmp_path: Path, processes: ProcessOrigin) -> None:
    result = run_one(tmp_path, "garbage", processes)

    assert (result.outcome, result.stage) == ("error", "import")
    assert result.reason is not None
    assert "not JSON" in result.reason
    assert result.reason.endswith("last words")


def test_an_exception_of_the_worker_is_an_error_without_machine_paths(tmp_path: Path, processes: ProcessOrigin) -> None:
    result = run_one(tmp_path, "raises", processes)

    assert (result.outcome, result.stage) == ("error", "attach")
    assert result.reason is not None
    assert result.reason.endswith("RuntimeError: no such thing in <work>")
    assert 'File "<code>/harness/worker/__main__.py"' in result.reason
    first_line = result.reason.splitlines()[0]
    assert first_line == (
        "the worker ended with exit status 1 before it was done: RuntimeError: no such thing in <work>"
    )
    assert str(tmp_path) not in result.model_dump_json()


def test_an_interpreter_that_is_not_there_is_an_error(tmp_path: Path, processes: ProcessOrigin) -> None:
    environment = FakeEnvironment(prefix=tmp_path / "env", python=tmp_path / "env" / "bin" / "python")
    report = run_cells(
        [cell()], services(tmp_path, prepare=lambda _stack: environment), Recorder(), processes=processes
    )

    assert (report.results[0].outcome, report.results[0].stage) == ("error", "import")
    assert report.results[0].reason == "<env>/bin/python cannot be started: No such file or directory"


def test_grandchildren_are_gone_when_a_cell_has_ended(tmp_path: Path, processes: ProcessOrigin) -> None:
    """One stays in the process group; the other has forked twice and leads a session of its own."""
    result = run_one(tmp_path, "escapes", processes)
    pids = [int(line) for line in (tmp_path / "scratch" / "pids").read_text().split()]

    assert result.outcome == "pass"
    assert len(pids) == 2
    assert wait_until(lambda: not any(alive(pid) for pid in pids), seconds=3)


def test_one_bad_cell_does_not_disturb_the_others(tmp_path: Path, processes: ProcessOrigin) -> None:
    recipes = ["passes", "segfaults", "hangs", "garbage", "raises", "slow"]
    limits = Limits(seconds=2.5, grace=0.3, interval=0.05)
    report = run_cells(
        [cell(name) for name in recipes], services(tmp_path, limits=limits), Recorder(), jobs=3, processes=processes
    )

    outcomes = [result.outcome for result in report.results]

    assert outcomes == ["pass", "crash", "timeout", "error", "error", "pass"]
