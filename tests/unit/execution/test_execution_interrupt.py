"""Ctrl-C, SIGTERM and a harness that is killed: children are gone, finished results are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import uuid
from pathlib import Path

import pytest
from execution_helpers import ALL_CHECKS, alive, cell, wait_until

from harness.execution.deadman import TOKEN, Deadman, carriers, kill_carriers
from harness.execution.store import load_results

DRIVER = """
import subprocess, sys
from pathlib import Path

sys.path.insert(0, sys.argv[1])
from execution_helpers import Recorder, cell, fake_environment, services
from harness.errors import EnvironmentFailedError, HarnessError
from harness.execution.scheduler import run_cells

folder, scene = Path(sys.argv[2]), sys.argv[3]

class Writer(Recorder):
    def run_ended(self, report):
        super().run_ended(report)
        (folder / "partial").write_text(" ".join(result.outcome for result in report.results))

def prepare(stack):
    if stack.peft == "0.18.1":
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"])
        (folder / "preparing").write_text(str(child.pid))
        if child.wait() != 0:
            raise EnvironmentFailedError("stopped")
    return fake_environment(folder, stack)

plan = [cell("passes"), cell("hangs"), cell("escapes-and-hangs")]
if scene == "preparing":
    plan = [cell("passes"), cell("passes", peft="0.18.1")]
try:
    run_cells(plan, services(folder, prepare=prepare), Writer(), jobs=2)
except HarnessError as error:
    print(error.message, file=sys.stderr)
    raise SystemExit(error.exit_code)
"""

HANGING_WORKER = (
    f"CHECKS = {ALL_CHECKS!r}"
    """
import json, os, subprocess, sys, time
from pathlib import Path

request = json.loads(Path(sys.argv[1]).read_text())
recipe = request["cell"]["recipe"]
pids = Path(request["work"]).parent / "pids"

def note(pid):
    with pids.open("a") as file:
        file.write(f"{pid}\\n")

if recipe == "passes":
    stages = ["import", "build", "load", "attach", "train", "save", "reload-adapter", "merge", "reload-merged",
              "compare", "controls"]
    checks = [{"name": name, "stage": stage, "value": 1, "band": "any", "passed": True} for name, stage in CHECKS]
    seen = {"stages": {name: {"result": "pass"} for name in stages}, "checks": checks,
            "merge": {"attempted": 6, "applied": 6}, "controls": [{"name": "base-copied", "rejected": True}],
            "running": None, "done": True}
    Path(request["observation"]).write_text(json.dumps(seen))
    raise SystemExit
note(os.getpid())
note(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
if recipe == "escapes-and-hangs":
    note(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid)
time.sleep(600)
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    (tmp_path / "package" / "worker").mkdir(parents=True)
    (tmp_path / "package" / "__init__.py").write_text("")
    (tmp_path / "package" / "worker" / "__main__.py").write_text(HANGING_WORKER)
    (tmp_path / "driver.py").write_text(DRIVER)
    return tmp_path


def start(folder: Path, scene: str) -> subprocess.Popen[str]:
    here = str(Path(__file__).parent)
    command = [sys.executable, str(folder / "driver.py"), here, str(folder), scene]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def noted(folder: Path) -> list[int]:
    path = folder / "scratch" / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM, signal.SIGHUP])
def test_a_signal_ends_children_keeps_results_and_exits_130(folder: Path, number: signal.Signals) -> None:
    driver = start(folder, "cells")
    assert wait_until(lambda: len(noted(folder)) == 5, seconds=30)
    os.kill(driver.pid, number)
    os.kill(driver.pid, number)  # pressed twice, or passed on by a parent
    _, errors = driver.communicate(timeout=20)

    assert driver.returncode == 130
    assert errors == "Interrupted: 1 of 3 cells have a result, which is kept.\n"
    assert not any(alive(pid) for pid in noted(folder))
    assert (folder / "partial").read_text() == "pass"
    assert [result.cell_id for result in load_results([folder / "out"])] == [cell("passes").id]
    assert not list((folder / "out").rglob("*.running"))


STORM = """
import os, subprocess, sys, threading
from harness.execution.interrupt import signals_set

cancelled = threading.Event()
with signals_set(cancelled):
    sender = subprocess.Popen([sys.executable, "-c", f"import os\\nfor _ in range(50_000): os.kill({os.getpid()}, 15)"])
    while sender.poll() is None:  # as the scheduler does: between two looks, any number of signals
        pass
    assert cancelled.wait(10)
"""


def test_signals_that_interrupt_each_other_do_not_wait_for_each_other() -> None:
    """Setting an event takes a lock: a second signal while the first was at it used to wait for ever."""
    process = subprocess.Popen([sys.executable, "-c", STORM])
    try:
        assert process.wait(timeout=60) == 0
    finally:
        process.kill()


def test_ctrl_c_also_ends_what_is_making_an_environment(folder: Path) -> None:
    driver = start(folder, "preparing")
    results = folder / "out" / "cells" / "qwen3_moe"
    assert wait_until(lambda: (folder / "preparing").exists() and bool(list(results.glob("*.json"))), seconds=30)
    os.kill(driver.pid, signal.SIGINT)
    driver.communicate(timeout=20)

    assert driver.returncode == 130
    assert not alive(int((folder / "preparing").read_text()))
    assert (folder / "partial").read_text() == "pass"


def test_children_go_with_a_harness_that_is_killed_outright(folder: Path) -> None:
    """SIGKILL cannot be handled: the watchdog does what the harness no longer can."""
    driver = start(folder, "cells")
    assert wait_until(lambda: len(noted(folder)) == 5, seconds=30)
    driver.kill()
    driver.communicate(timeout=20)

    assert wait_until(lambda: not any(alive(pid) for pid in noted(folder)))
    assert [result.outcome for result in load_results([folder / "out"])] == ["pass"]


def test_processes_are_found_by_their_token_and_no_others() -> None:
    sleep = [sys.executable, "-c", "import time; time.sleep(600)"]
    run = uuid.uuid4().hex  # other runs of this test may be under way on the machine
    mine = [subprocess.Popen(sleep, env={TOKEN: token}) for token in (f"{run}.1", f"{run}.2")]
    others = [subprocess.Popen(sleep, env={TOKEN: token}) for token in (f"{run}d.1", run[:-1])]
    try:
        assert wait_until(lambda: len(carriers(run)) == 2)
        assert carriers(f"{run}.2") == [mine[1].pid]
        assert kill_carriers(run) == 2
        assert [process.wait() for process in mine] == [-signal.SIGKILL] * 2
        assert all(alive(process.pid) for process in others)
    finally:
        for process in [*mine, *others]:
            process.kill()
            process.wait()


def test_the_watchdog_leaves_with_the_run() -> None:
    watchdog = Deadman("no-such-token")
    with watchdog:
        process = watchdog._process
        assert process.poll() is None

    assert process.returncode == 0
