"""Stages in forked children: whatever a stage does, its child ends as a child and its parent goes on as a parent."""

from __future__ import annotations

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
print(observation.data["stages"]["load"]["ended"], observation.data.get("drawn"))
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
