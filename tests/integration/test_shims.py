"""The one shim, on the stack that it is for: without it the adapter cannot be loaded, with it the adapter is right, and afterwards it is gone."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from real_stacks import NO_RELOAD

import harness
from harness.envs import child_environment, ensure_environment
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.locate import find_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


def test_an_adapter_loads_within_the_shim_and_only_there(tmp_path: Path) -> None:
    config = load_config(find_config(), read_catalogue())
    environment = ensure_environment(next(stack for stack in config.declared if stack.id == NO_RELOAD))
    program = Path(__file__).with_name("shim_program.py")
    done = subprocess.run(
        [environment.python, "-I", str(program), str(Path(harness.__file__).parents[1])],
        env=child_environment(scratch=tmp_path, prefix=environment.prefix),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    answer = json.loads(done.stdout)

    assert "'distributed_operation'" in answer["alone"]
    assert answer["applied"] == ["weight-converter-arguments"]
    assert answer["replaced"]
    assert answer["difference"] == 0
    assert "would drop what means something" in answer["refused"]
    assert answer["gone"]
    assert answer["again"] == answer["alone"]
