"""Stages in forked children: whatever a stage does, its child ends as a child and its parent goes on as a parent."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest

import harness

ROOT = Path(harness.__file__).parents[1]
PROGRAM = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from harness.worker.observation import Observation
from harness.worker.processes import run_in_child

parent = os.getpid()
observation = Observation(Path(sys.argv[2]))

def stages(seen):
    with seen.stage("load"):
        {does}

try:
    run_in_child(observation, stages, names=("load",))
finally:
    os.write(2, b"parent\\n" if os.getpid() == parent else b"child\\n")
"""


def run(folder: Path, does: str, program: str = PROGRAM) -> subprocess.CompletedProcess[str]:
    code = program.replace("{does}", does)
    command = [sys.executable, "-I", "-c", code, str(ROOT), str(folder / "observation.json")]
    return subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)


@pytest.mark.parametrize(
    "does", ["sys.stdout.close()", "sys.stderr.close()", "sys.stdout = None", "raise SystemExit(7)"]
)
def test_a_child_never_returns_into_its_parent_s_code(tmp_path: Path, does: str) -> None:
    done = run(tmp_path, does)
    said = [line for line in done.stderr.splitlines() if line in ("parent", "child")]

    assert said == ["parent"]
    assert done.returncode == 0


SIBLINGS = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
import random, numpy, torch
from harness.worker.observation import Observation
from harness.worker.processes import run_in_child

observation = Observation(Path(sys.argv[2]))
observation.data["drawn"] = []

def stages(seen):
    with seen.stage("load"):
        unseeded = [random.random(), float(numpy.random.rand()), float(torch.rand(1))]
        torch.manual_seed(7)
        seen.data["drawn"].append([*unseeded, float(torch.rand(1))])

for _ in range(2):
    run_in_child(observation, stages, names=("load",))
torch.manual_seed(7)
print(repr([*observation.data["drawn"], float(torch.rand(1))]))
"""


def test_children_share_no_random_numbers_but_those_that_they_seed(tmp_path: Path) -> None:
    done = run(tmp_path, "", SIBLINGS)
    first, second, seeded = json.loads(done.stdout.splitlines()[-1])

    assert all(one != other for one, other in zip(first[:3], second[:3], strict=True))
    assert first[3] == second[3] == seeded


LEAVES = """
import os, sys, time
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from harness.worker.observation import Observation
from harness.worker.orphans import adopt_orphans
from harness.worker.processes import run_in_child

adopt_orphans()
observation = Observation(Path(sys.argv[2]))

def stages(seen):
    with seen.stage("merge"):
        if os.fork() == 0:
            os.setsid()
            Path(sys.argv[2] + ".started").write_text("")
            time.sleep(0.5)
            {does}
        while not Path(sys.argv[2] + ".started").exists():
            time.sleep(0.01)

run_in_child(observation, stages, names=("merge",))
time.sleep(1)
"""


@pytest.mark.parametrize("does", ['Path(sys.argv[2] + ".late").write_text("")', 'raise RuntimeError("a second end")'])
def test_what_a_stage_leaves_running_ends_with_it(tmp_path: Path, does: str) -> None:
    """An engine that forks: its child would write what the next stage judges, or record the stage's end again."""
    done = run(tmp_path, does, LEAVES)
    record = json.loads((tmp_path / "observation.json").read_text())

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "observation.json.started").exists()
    assert not (tmp_path / "observation.json.late").exists()
    assert record["stages"]["merge"]["ended"] == "completed"


TORN = """
import os, sys
from pathlib import Path
sys.path.insert(0, sys.argv[1])
from harness.worker.observation import Observation
from harness.worker.processes import run_in_child

observation = Observation(Path(sys.argv[2]))

def build(seen):
    with seen.stage("build"):
        pass

def merge(seen):
    with seen.stage("merge"):
        seen.path.write_text({does})
        os._exit(0)

run_in_child(observation, build, names=("build",))
run_in_child(observation, merge, names=("merge",))
"""


@pytest.mark.parametrize("does", [""" '{"stages": {' """, "'[]'", "'{}'", "''"])
def test_a_torn_record_costs_its_stage_and_none_before_it(tmp_path: Path, does: str) -> None:
    done = run(tmp_path, does.strip(), TORN)
    stages = json.loads((tmp_path / "observation.json").read_text())["stages"]

    assert done.returncode == 0, done.stderr
    assert stages["build"]["ended"] == "completed"
    assert stages["merge"]["ended"] == "died"
    assert stages["merge"]["reason"].startswith("the record of the stages ")
