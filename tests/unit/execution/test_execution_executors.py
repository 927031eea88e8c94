# ruff: noqa: D102  # the methods of a runner are described in the protocol
"""Executors: the folder is the catalogue, and the scheduler runs cells by whatever it is handed."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
from collections.abc import Callable, Collection
from pathlib import Path

import pytest
from execution_helpers import WORKER, Recorder, cell, fake_package, services

import harness
from harness.contract.cell_fields import Device
from harness.errors import ConfigurationError, UnknownNameError
from harness.execution import executors
from harness.execution.executors import executor, executor_names, local
from harness.execution.executors.local import LocalRunner
from harness.execution.finalise import StackRecord, without_worker
from harness.execution.machine import MachineKind
from harness.execution.runner import ProcessOrigin, Ran, RunContext
from harness.execution.scheduler import RunInterruptedError, run_cells
from harness.execution.services import CellSettings, PreparedEnvironment
from harness.matrix.cell import Cell, Stack
from harness.result import StageName


def test_each_file_of_the_folder_is_an_executor() -> None:
    files = {path.stem for path in Path(executors.__file__).parent.glob("*.py")} - {"__init__"}

    assert set(executor_names()) == files >= {"local"}
    assert executor("local").make_runner is LocalRunner
    assert executor("local").capacity is local.capacity


def test_a_file_is_all_that_an_executor_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    known = executor_names()
    (tmp_path / "telegraph.py").write_text("def runner(context):\n    return context\n")
    monkeypatch.setattr(executors, "__path__", [*executors.__path__, str(tmp_path)])

    assert executor_names() == tuple(sorted((*known, "telegraph")))
    assert executor("telegraph").make_runner(1) == 1  # type: ignore[arg-type, comparison-overlap]  # what it is given
    assert executor("telegraph").capacity is local.capacity, "its cells run here, so there is as much as there is here"


def test_an_executor_that_is_not_there_is_an_error_that_names_those_that_are(tmp_path: Path) -> None:
    with pytest.raises(UnknownNameError, match=r"unknown executor 'locla'.*'local'"):
        executor("locla")
    command = [sys.executable, "-m", "harness", "matrix", "--executor", "carrier-pigeon", "--out", str(tmp_path)]
    done = subprocess.run(command, check=False, capture_output=True, text=True, cwd=Path(harness.__file__).parents[1])

    assert done.returncode == 2
    assert f"Known: {', '.join(executor_names())}." in " ".join(done.stderr.split())


def test_an_executor_whose_package_is_missing_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ray", None)  # as if it were not there
    monkeypatch.delitem(sys.modules, "harness.execution.executors.ray", raising=False)

    with pytest.raises(ConfigurationError, match="needs Ray, and there is no module ray") as raised:
        executor("ray")
    assert raised.value.remedy is not None
    assert "pip install 'moe-lora-harness[ray]'" in raised.value.remedy


class Elsewhere:
    """An executor that asks nobody: every cell is out of memory."""

    def __init__(self, context: RunContext) -> None:
        self.context = context
        self.calls: list[str] = []

    def prepare(self, stack: Stack) -> PreparedEnvironment:
        self.calls.append(f"prepare {stack.peft}")
        return self.context.prepare(stack)

    def machines(self, device: Device) -> Collection[MachineKind]:
        return [("abacus", device)]

    def run(
        self,
        cell: Cell,
        environment: PreparedEnvironment,
        settings: CellSettings,
        *,
        number: int,
        cancelled: threading.Event,
        entered: Callable[[StageName], None],
    ) -> Ran | None:
        self.calls.append(f"run {number} {environment.python_version} {settings.threads}")
        entered("merge")
        self.context.note(f"{cell.recipe} goes elsewhere")
        if cell.recipe == "hangs":
            cancelled.set()
            return None
        result = without_worker(
            cell, outcome="error", stage="install", reason="too small", stack=StackRecord(),
            redactor=self.context.redactor(), started="2026-11-27T00:00:00+00:00",
        )  # fmt: skip
        return Ran(result=result, key=None)

    def release(self, stack: Stack) -> None:
        self.calls.append(f"release {stack.peft}")

    def close(self) -> None:
        self.calls.append("close")


def test_the_scheduler_is_handed_what_runs_cells(tmp_path: Path) -> None:
    made: list[Elsewhere] = []

    def make(context: RunContext) -> Elsewhere:
        made.append(Elsewhere(context))
        return made[0]

    recorder = Recorder()
    plan = [cell(), cell(seed=1), cell(peft="0.18.1")]
    report = run_cells(plan, services(tmp_path), recorder, make_runner=make)

    assert [result.reason for result in report.results] == ["too small"] * 3
    assert [call for call in made[0].calls if not call.startswith("prepare")] == [
        "run 1 3.11.7 1", "run 2 3.11.7 1", "release 0.19.1", "run 3 3.11.7 1", "release 0.18.1", "close",
    ]  # fmt: skip
    assert [call for call in made[0].calls if call.startswith("prepare")] == ["prepare 0.19.1", "prepare 0.18.1"]
    assert ("note", "passes goes elsewhere") in recorder.events
    assert ("cell_stage", plan[0].id, "merge") in recorder.events


def test_a_runner_is_closed_when_the_run_is_cancelled(tmp_path: Path) -> None:
    made: list[Elsewhere] = []

    def make(context: RunContext) -> Elsewhere:
        made.append(Elsewhere(context))
        return made[0]

    with pytest.raises(RunInterruptedError):
        run_cells([cell("hangs"), cell()], services(tmp_path), Recorder(), make_runner=make)

    assert made[0].calls == ["prepare 0.19.1", "run 1 3.11.7 1", "close"]


class Polite(LocalRunner):
    """An executor that overrides the one thing that is offered for it."""

    def program(self, environment: PreparedEnvironment) -> list[str]:
        return ["nice", "-n", "3", *super().program(environment)]


@pytest.mark.parametrize("processes", ["warm", "fresh"])
def test_an_executor_can_run_cells_here_and_start_them_otherwise(tmp_path: Path, processes: ProcessOrigin) -> None:
    fake_package(tmp_path, WORKER.replace('print("cwd"', 'print("niceness", os.nice(0)); print("cwd"'))
    plan = [cell()]
    report = run_cells(plan, services(tmp_path), Recorder(), make_runner=Polite, processes=processes)
    (log,) = (tmp_path / "out" / "cells").rglob("*.log")

    assert [result.outcome for result in report.results] == ["pass"]
    assert f"niceness {os.nice(0) + 3}\n" in log.read_text()
