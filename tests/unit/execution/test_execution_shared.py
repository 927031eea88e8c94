"""Drivers as processes of their own that share kept results: two at once, and one that is killed again and again."""

from __future__ import annotations

import subprocess
import sys
import time
from pathlib import Path

from execution_helpers import Recorder, cell, fake_package, services, wait_until

from harness.execution.loading import load_found
from harness.execution.result_cache import ResultCache
from harness.execution.result_room import kept_results
from harness.execution.scheduler import run_cells

CELLS = 6
PROGRAM = f"""
import shutil, sys
from pathlib import Path
sys.path[:0] = {[path for path in sys.path if path]!r}
from execution_helpers import Recorder, cell, services
from harness.execution.result_cache import ResultCache
from harness.execution.scheduler import run_cells

folder = Path(sys.argv[1])
recorder = Recorder()
report = run_cells(
    [cell("slow", seed=number) for number in range({CELLS})],
    services(folder, results=ResultCache(Path(sys.argv[2]))),
    recorder,
    jobs=2,
)
notes = [event for event in recorder.events if event[0] == "note"]
print([result.outcome for result in report.results].count("pass"), len(report.reused), notes)
"""


def driver(folder: Path, kept: Path) -> subprocess.Popen[str]:
    """Start a run of the same cells below ``folder``."""
    if not (folder / "package").exists():
        folder.mkdir(exist_ok=True)
        fake_package(folder)
    return subprocess.Popen([sys.executable, "-c", PROGRAM, folder, kept], stdout=subprocess.PIPE, text=True)


def whole(kept: Path) -> list[Path]:
    """The kept results; a driver that dies may leave a log alone, which is none."""
    return list(kept.glob("*/*.json"))


def test_two_runs_at_once_share_what_they_keep(tmp_path: Path) -> None:
    kept = tmp_path / "kept"
    runs = [driver(tmp_path / name, kept) for name in ("one", "two")]
    said = [run.communicate(timeout=120)[0].split(maxsplit=2) for run in runs]
    third = driver(tmp_path / "one", kept)

    assert [run.returncode for run in runs] == [0, 0]
    assert [(passed, notes.strip()) for passed, _, notes in said] == [(str(CELLS), "[]")] * 2
    assert third.communicate(timeout=120)[0].split() == [str(CELLS), str(CELLS), "[]"]
    assert len(kept_results(kept)) == CELLS
    assert not list(kept.rglob("*.tmp"))


def test_a_run_that_is_killed_again_and_again_loses_nothing(tmp_path: Path) -> None:
    """What was kept when the driver died is reused, whatever it was doing; the rest runs."""
    kept, folder = tmp_path / "kept", tmp_path / "run"
    finished = 0
    for _ in range(3):
        process = driver(folder, kept)
        try:
            assert wait_until(lambda: len(whole(kept)) > finished or process.poll() is not None, 60)  # noqa: B023
        finally:
            process.kill()
            process.communicate()
        finished = len(whole(kept))
    time.sleep(0.5)  # workers of the last driver notice that it is gone
    recorder = Recorder()
    plan = [cell("slow", seed=number) for number in range(CELLS)]
    report = run_cells(plan, services(folder, results=ResultCache(kept)), recorder, jobs=2)

    assert len(report.results) == CELLS
    assert finished >= 3
    assert len(report.reused) == finished
    assert not [event for event in recorder.events if event[0] == "note" and "ignored" in event[1]]
    assert load_found([folder / "out"]).planned == {}
