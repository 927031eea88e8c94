"""Whether children of a process can compute is tried, not assumed."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest

import harness

TRY = """
import sys
sys.path.insert(0, sys.argv[1])
import torch
torch.set_num_threads(2)
if sys.argv[2] == "computes":
    torch.ones(512, 512) @ torch.ones(512, 512)
    torch.ones(2**20).exp()
from harness.worker.libraries import try_to_compute
print(try_to_compute(seconds=float(sys.argv[3])))
"""


@pytest.mark.parametrize(("parent", "seconds", "said"), [("imports", 60, "True"), ("computes", 3, "False")])
def test_children_of_a_process_that_has_computed_hang(parent: str, seconds: float, said: str) -> None:
    root = Path(harness.__file__).parents[1]
    command = [sys.executable, "-I", "-c", TRY, str(root), parent, str(seconds)]
    done = subprocess.run(command, check=True, capture_output=True, text=True, timeout=200)

    assert done.stdout.strip() == said
