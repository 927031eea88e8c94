"""A forward that ignores the LoRA, planted beside the real ones, is what a cell names."""

from __future__ import annotations

import json
import subprocess
from pathlib import Path

import pytest
from real_stacks import NEWEST, STANDARD

import harness
from harness.envs import child_environment, ensure_environment
from harness.execution.request import WorkerRequest
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.locate import find_config
from harness.matrix.plan import one_cell

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]


@pytest.mark.parametrize(("stack_id", "recipe"), [(STANDARD, "lora"), (NEWEST, "qlora4")])
def test_a_forward_past_the_lora_is_caught_by_the_cell(stack_id: str, recipe: str, tmp_path: Path) -> None:
    catalogue = read_catalogue()
    config = load_config(find_config(), catalogue)
    stack = next(stack for stack in config.declared if stack.id == stack_id)
    cell = one_cell(catalogue, stack, family="glm4_moe", recipe=recipe, device="cpu")
    environment = ensure_environment(stack)
    work = tmp_path / "work"
    work.mkdir()
    request = WorkerRequest(
        cell=cell,
        work=work,
        bands=config.bands_of(engine=cell.engine, dtype=cell.dtype, geometry=cell.geometry).model_dump(),
    )
    path = tmp_path / "request.json"
    path.write_text(request.to_json())
    program = Path(__file__).with_name("planted_forward.py")
    done = subprocess.run(
        [environment.python, "-I", str(program), str(Path(harness.__file__).parents[1]), str(path)],
        cwd=work,
        env=child_environment(scratch=tmp_path, prefix=environment.prefix),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    seen = json.loads(request.observation.read_text())

    (check,) = [check for check in seen["checks"] if check["name"] == "forward_paths"]
    assert not check["passed"]
    assert check["detail"].startswith("batched_mm differs from eager")
    assert check["value"] > 0.5
    assert max(seen["forward_paths"]["grouped_mm"].values()) < 1e-4
    assert seen["stages"]["forward-paths"]["ended"] == "completed", (
        "what a failed check amounts to is the host's to decide"
    )
