"""LoRA extraction against PEFT's own delta, in every PEFT that the stacks hold: any number of experts, shape, rank, scale and orientation."""

from __future__ import annotations

import json
import random
import subprocess
from pathlib import Path
from typing import Any

import pytest
from real_stacks import NEWEST, STANDARD, SWAPPED

import harness
from harness.envs import child_environment, ensure_environment
from harness.matrix.catalogue import read_catalogue
from harness.matrix.config import load_config
from harness.matrix.locate import find_config

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PROGRAM = Path(__file__).with_name("extraction_cells.py")
SWAPPING = {SWAPPED: "swapped", STANDARD: "standard", NEWEST: "standard"}


def cases() -> list[dict[str, Any]]:
    """Two hundred drawn at random from a seed, and the corners: one expert, square, rank 1."""
    draw = random.Random(4)  # noqa: S311 - test cases
    drawn = [
        {
            "experts": draw.choice([1, 2, 3, 8]),
            "in": draw.choice([4, 6, 7, 8]),
            "out": draw.choice([4, 6, 7, 8]),
            "rank": draw.choice([1, 2, 3, 5]),
            "alpha": draw.choice([1, 3, 16]),
            "rslora": draw.random() < 0.5,
            "transposed": draw.random() < 0.5,
        }
        for _ in range(200)
    ]
    return [{**case, "seed": seed} for seed, case in enumerate(drawn)]


def answers(stack_id: str, given: list[dict[str, Any]], scratch: Path) -> list[dict[str, Any]]:
    config = load_config(find_config(), read_catalogue())
    environment = ensure_environment(next(stack for stack in config.declared if stack.id == stack_id))
    done = subprocess.run(
        [environment.python, "-I", str(PROGRAM), str(Path(harness.__file__).parents[1])],
        input="\n".join(json.dumps(case) for case in given),
        env=child_environment(scratch=scratch, prefix=environment.prefix),
        check=False,
        capture_output=True,
        text=True,
    )
    assert done.returncode == 0, done.stderr[-3000:]
    return [json.loads(line) for line in done.stdout.splitlines()]


@pytest.mark.parametrize("stack_id", SWAPPING)
def test_the_factors_give_what_pefts_own_delta_gives(stack_id: str, tmp_path: Path) -> None:
    given = cases()
    found = answers(stack_id, given, tmp_path)

    assert len(found) == len(given)
    for case, said in zip(given, found, strict=True):
        if "refused" in said:
            # With one expert PEFT multiplies the factors in the parameter's own coordinates, whichever way round they are: not a delta.
            assert case["experts"] == 1, (case, said)
            assert not said["peft_can"], (case, said)
            continue
        assert said["shapes"] == [
            [case["experts"], case["in"], case["rank"]],
            [case["experts"], case["rank"], case["out"]],
        ], case
        assert said["error"] < 1e-12, (case, said)
        assert said["gradients"], case
    many = [said for case, said in zip(given, found, strict=True) if case["experts"] > 1 and not case["transposed"]]
    assert {said["io_layout"] for said in many} == {SWAPPING[stack_id]}
    turned = [said for case, said in zip(given, found, strict=True) if case["experts"] > 1 and case["transposed"]]
    assert {said["io_layout"] for said in turned} == {"standard"}
