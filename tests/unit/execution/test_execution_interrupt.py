"""Ctrl-C, SIGTERM and a harness that is killed: children are gone, finished results are kept."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import uuid
from pathlib import Path

import pytest
from contract_samples import complete_observation
from execution_helpers import alive, cell, fake_package, wait_until

from harness.envs.indexes import IndexSettings
from harness.envs.uv_command import uv_environment
from harness.execution.deadman import TOKEN, Deadman, carriers, kill_carriers
from harness.execution.interrupt import signals_set
from harness.execution.loading import load_results
from harness.execution.runner import ProcessOrigin

DRIVER = """
import subprocess, sys
from pathlib import Path

sys.path[:0] = sys.argv[1].split(":")
from execution_helpers import Recorder, cell, fake_environment, services
from harness.errors import EnvironmentFailedError, HarnessError
from harness.execution.scheduler import run_cells

folder, scene, processes = Path(sys.argv[2]), sys.argv[3], sys.argv[4]

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
    run_cells(plan, services(folder, prepare=prepare), Writer(), jobs=2, processes=processes)
except HarnessError as error:
    print(error.message, file=sys.stderr)
    raise SystemExit(error.exit_code)
"""

HANGING_WORKER = (
    f"COMPLETE = {complete_observation()!r}"
    """
import json, os, subprocess, sys, time
from pathlib import Path

def note(pid):
    with pids.open("a") as file:
        file.write(f"{pid}\\n")

def run(path):
    global pids
    request = json.loads(Path(path).read_text())
    recipe = request["cell"]["recipe"]
    pids = Path(request["work"]).parent / "pids"
    if recipe == "passes":
        Path(request["observation"]).write_text(json.dumps(COMPLETE))
        raise SystemExit
    note(os.getpid())
    note(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"]).pid)
    if recipe == "escapes-and-hangs":
        note(subprocess.Popen([sys.executable, "-c", "import time; time.sleep(600)"], start_new_session=True).pid)
    time.sleep(600)

if sys.argv[1] == "--warm":
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))
    from harness.worker.warm import serve
    serve(lambda: None, run)
else:
    run(sys.argv[1])
"""
)


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    fake_package(tmp_path, HANGING_WORKER)
    (tmp_path / "driver.py").write_text(DRIVER)
    return tmp_path


def start(folder: Path, scene: str, processes: ProcessOrigin = "warm") -> subprocess.Popen[str]:
    here = ":".join(str(folder) for folder in (Path(__file__).parent, Path(__file__).parents[2]))
    command = [sys.executable, str(folder / "driver.py"), here, str(folder), scene, processes]
    return subprocess.Popen(command, stderr=subprocess.PIPE, text=True, start_new_session=True)


def running_from(folder: Path) -> list[int]:
    """Processes that were started with a path below ``folder``: warm workers, and cells with processes of their own."""
    found = []
    for entry in Path("/proc").iterdir():
        if entry.name.isdigit() and alive(int(entry.name)):
            try:
                command = (entry / "cmdline").read_bytes()
            except (FileNotFoundError, ProcessLookupError):
                continue
            found += [int(entry.name)] if f"{folder}/cache".encode() in command else []
    return found


def noted(folder: Path) -> list[int]:
    path = folder / "scratch" / "pids"
    return [int(line) for line in path.read_text().split()] if path.exists() else []


@pytest.mark.parametrize(
    ("number", "processes"),
    [(signal.SIGINT, "warm"), (signal.SIGTERM, "warm"), (signal.SIGHUP, "warm"), (signal.SIGINT, "fresh")],
)
def test_a_signal_ends_children_keeps_results_and_exits_130(
    folder: Path, number: signal.Signals, processes: ProcessOrigin
) -> None:
    driver = start(folder, "cells", processes)
    assert wait_until(lambda: len(noted(folder)) == 5, seconds=30)
    os.kill(driver.pid, number)
    os.kill(driver.pid, number)  # pressed twice, or passed on by a parent
    _, errors = driver.communicate(timeout=20)

    assert driver.returncode == 130
    assert errors == "Interrupted: 1 of 3 cells has a result, which is kept.\n"
    assert not any(alive(pid) for pid in noted(folder))
    assert running_from(folder) == []
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


def test_an_exit_status_is_there_though_whoever_started_the_harness_ignores_them() -> None:
    before = signal.signal(signal.SIGCHLD, signal.SIG_IGN)
    try:
        with signals_set(threading.Event()):
            process = subprocess.Popen([sys.executable, "-c", "raise SystemExit(3)"])
            assert os.waitid(os.P_PID, process.pid, os.WEXITED | os.WNOWAIT) is not None
            assert process.wait() == 3
        assert signal.getsignal(signal.SIGCHLD) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGCHLD, before)


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


@pytest.mark.parametrize("processes", ["warm", "fresh"])
def test_children_go_with_a_harness_that_is_killed_outright(folder: Path, processes: ProcessOrigin) -> None:
    """SIGKILL cannot be handled: the watchdog does what the harness no longer can."""
    driver = start(folder, "cells", processes)
    assert wait_until(lambda: len(noted(folder)) == 5, seconds=30)
    assert len(running_from(folder)) >= 2
    driver.kill()
    driver.communicate(timeout=20)

    assert wait_until(lambda: not any(alive(pid) for pid in noted(folder)) and not running_from(folder))
    assert [result.outcome for result in load_results([folder / "out"])] == ["pass"]


def test_what_makes_an_environment_goes_with_a_harness_that_is_killed_outright(folder: Path) -> None:
    """It is started as uv is, with the variables of the harness."""
    driver = start(folder, "preparing")
    assert wait_until(lambda: (folder / "preparing").exists() and (folder / "preparing").read_text() != "", seconds=30)
    driver.kill()
    driver.communicate(timeout=20)

    assert wait_until(lambda: not alive(int((folder / "preparing").read_text())), seconds=10)


def test_uv_carries_the_token_of_the_run() -> None:
    run = uuid.uuid4().hex
    with Deadman(run):
        given = uv_environment(os.environ, IndexSettings(source="none", environment={}))
        assert given[TOKEN] == run
    assert TOKEN not in os.environ


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
