"""Quantised weights against the original's, on blocks worked out by hand."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from control_cells import request_in
from safetensors.numpy import save_file

from harness.definitions.coding import NF4, share_of_room
from harness.worker.checkpoints.family import Checkpoint, Routing
from harness.worker.checkpoints.tensors import TensorSpec
from harness.worker.observation import Observation
from harness.worker.recipes.quantization import Quantization
from harness.worker.stages.coding import check_coding

NF4_TWICE = Quantization(code="nf4", double_quant=True)
INT8 = Quantization(code="int8")
Q, K = (TensorSpec(key=f"{name}.weight", shape=(1, 64), kind="attention", module=name) for name in ("q", "k"))
NORM = TensorSpec(key="norm.weight", shape=(64,))
CHECKPOINT = Checkpoint(
    config={}, tensors=(Q, K, NORM), routing=Routing(top_k=1, scores="softmax"), layers_with_experts=(0,), num_experts=1
)
CODES = np.resize(np.array(NF4), 64)
BLOCK = 3.0 * CODES + np.where(np.abs(CODES) < 1, 0.01, 0.0)
"""Its largest weight is 3 in size, and every other weight lies 0.01 above a code."""
ROW = np.linspace(-1.27, 1.27, 64)
"""Its scale is 0.01 a step."""


def checks(
    work: Path, original: dict[str, Any], coded: dict[str, Any], quantization: Quantization, schemes: set[str]
) -> dict[str, Any]:
    """What is recorded of a base and of what its codes mean; what is not given is the same in both."""
    for name, changed in (("base", original), ("base-dequantized", coded)):
        (work / name).mkdir()
        tensors = {key: np.zeros((1, 64)) for key in ("q.weight", "k.weight")} | {"norm.weight": np.ones(64)}
        save_file(
            tensors | {key: value.reshape(1, 64) for key, value in changed.items()}, work / name / "m.safetensors"
        )
    observation = Observation(work / "observation.json")
    check_coding(observation, request_in(work), CHECKPOINT, quantization, schemes)
    return {check["name"]: check for check in observation.data["checks"]}


def both(values: Any) -> dict[str, Any]:
    return {"q.weight": values, "k.weight": values}


@pytest.mark.parametrize(
    ("coded", "fine"),
    [
        (3.0 * CODES, True),
        (3.0 * 1.005 * CODES, True),  # a scale that 8 bits round
        (3.0 * 1.05 * CODES, False),
        (3.0 * 1.5 * CODES, False),
        (-3.0 * CODES, False),
        (3.0 * CODES[::-1], False),
        (np.where(np.arange(64) == 9, 3.0 * NF4[8], 3.0 * CODES), False),  # one weight, one code off
        (np.where(np.arange(64) == 9, np.nan, 3.0 * CODES), False),
    ],
)
def test_four_bits_lie_at_the_nearest_code(tmp_path: Path, coded: Any, *, fine: bool) -> None:
    found = checks(tmp_path, both(BLOCK), both(coded), NF4_TWICE, {"nf4, double quantised"})

    assert found["coding"]["passed"] is fine
    assert found["census"]["passed"]


@pytest.mark.parametrize(
    ("larger", "fine"),
    [
        ([1.01, 0.99, 1.01, 0.99], True),
        ([1.005, 1.005, 1.005, 1.005], True),
        ([1.0101, 1.0101, 1.0101, 1.0101], False),  # 0.0101 * sqrt(4) > 0.02
        ([0.9899, 0.9899, 0.9899, 0.9899], False),
    ],
)
def test_scales_are_rounded_up_as_often_as_down(larger: list[float], *, fine: bool) -> None:
    """Each of four blocks is within the room of one."""
    blocks, coded = np.tile(BLOCK, 4), np.concatenate([3.0 * by * CODES for by in larger])

    assert (share_of_room(blocks, coded, "nf4") <= 1) is fine


@pytest.mark.parametrize(
    ("coded", "fine"),
    [
        (np.round(ROW / 0.01) * 0.01, True),
        (np.round(ROW / 0.01) * 0.0101, False),
        (np.round(ROW / 0.01) * 0.01 + np.where(np.arange(64) == 5, 0.01, 0.0), False),
    ],
)
def test_eight_bits_lie_within_half_a_step(tmp_path: Path, coded: Any, *, fine: bool) -> None:
    assert checks(tmp_path, both(ROW), both(coded), INT8, {"int8"})["coding"]["passed"] is fine


def test_one_tensor_that_holds_no_number_is_the_worst(tmp_path: Path) -> None:
    coded = {"q.weight": 3.0 * CODES, "k.weight": np.full(64, np.nan)}

    assert not checks(tmp_path, both(BLOCK), coded, NF4_TWICE, {"nf4, double quantised"})["coding"]["passed"]


def test_a_tensor_that_was_left_out_is_named(tmp_path: Path) -> None:
    coded = {"q.weight": 3.0 * CODES, "k.weight": BLOCK}

    found = checks(tmp_path, both(BLOCK), coded, NF4_TWICE, {"nf4, double quantised"})["census"]
    assert (found["value"], found["passed"]) == ("1/2", False)
    assert "not quantised: ['k.weight']" in found["detail"]


def test_a_tensor_that_nobody_asked_for_is_named(tmp_path: Path) -> None:
    coded = both(3.0 * CODES) | {"norm.weight": np.full(64, 1.001)}

    found = checks(tmp_path, both(BLOCK), coded, NF4_TWICE, {"nf4, double quantised"})["census"]
    assert not found["passed"]
    assert "not asked for: ['norm.weight']" in found["detail"]


@pytest.mark.parametrize("schemes", [{"nf4"}, {"nf4, double quantised", "fp4"}, set()])
def test_another_code_is_named(tmp_path: Path, schemes: set[str]) -> None:
    found = checks(tmp_path, both(BLOCK), both(3.0 * CODES), NF4_TWICE, schemes)

    assert not found["census"]["passed"]
