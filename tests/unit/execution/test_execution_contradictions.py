"""A worker's record that contradicts itself is never a pass, however it came to do so."""

from __future__ import annotations

import json
from collections.abc import Callable
from typing import Any

import pytest
from contract_samples import ALL_CHECKS, complete_observation, plain_cell

from harness.execution.finalise import StackRecord, finalise
from harness.execution.observation import parse_observation
from harness.execution.redact import Redactor
from harness.execution.supervise import SupervisedExit
from harness.matrix.verdict import judge
from harness.result import CellResult

VERSIONS = {"transformers": "5.5.0", "peft": "0.19.1", "trl": "0.25.1", "torch": "2.13.0"}
CONTROLLED = [pair for pair in ALL_CHECKS if not pair[0].startswith("control:")]
CONTROLS = [pair for pair in ALL_CHECKS if pair[0].startswith("control:")]


def finished(observation: dict[str, Any]) -> CellResult:
    return finalise(
        plain_cell(),
        observation=parse_observation(json.dumps(observation).encode()),
        ended=SupervisedExit(ending="exited", code=0, seconds=1.0),
        stack=StackRecord(versions=VERSIONS, lock_sha256="b" * 64, python_version="3.11.7"),
        redactor=Redactor({}),
        log_tail="",
        log=None,
        started=None,
    )


def is_green(observation: dict[str, Any]) -> bool:
    result = finished(observation)
    return result.outcome == "pass" and judge(result, []).status == "ok"


def find(observation: dict[str, Any], name: str, stage: str) -> dict[str, Any]:
    found: dict[str, Any] = next(
        check for check in observation["checks"] if (check["name"], check["stage"]) == (name, stage)
    )
    return found


def test_the_record_is_green_as_it_is() -> None:
    assert is_green(complete_observation())


@pytest.mark.parametrize("value", [None, -1, 0.1, 1e308, "", "x", "0", "5/6", "0/0", "7/6", "06/06", "6/6 "])
@pytest.mark.parametrize(("name", "stage"), CONTROLLED)
def test_a_check_that_passed_outside_its_band_is_no_pass(name: str, stage: str, value: Any) -> None:
    observation = complete_observation()
    find(observation, name, stage)["value"] = value
    below = value == -1 and find(observation, name, stage)["band"] == "<= 1e-09"
    metric_too = {"adapter_reload", "signal", "kl", "logprob", "exact", "dtypes", "keys", "files"}

    assert is_green(observation) == (below and name not in metric_too)


@pytest.mark.parametrize("change", [{"passed": False}, {"value": 0.0}, {"value": float("inf")}, None])
@pytest.mark.parametrize(("name", "stage"), [pair for pair in CONTROLS if pair[1] != "controls"])
def test_a_control_that_was_let_through_or_lies_in_its_band_or_is_not_there_is_no_pass(
    name: str, stage: str, change: dict[str, Any] | None
) -> None:
    observation = complete_observation()
    if change is None:
        observation["checks"].remove(find(observation, name, stage))
    else:
        find(observation, name, stage).update(change)

    assert not is_green(observation)


@pytest.mark.parametrize("band", ["", "any", "<= ", "<= x", "~ 1", "<=1", "<= 1x", "<= nan", "<= inf"])
@pytest.mark.parametrize("name", ["loss", "kl", "files"])
def test_a_check_whose_band_nobody_can_read_is_no_pass(name: str, band: str) -> None:
    observation = complete_observation()
    find(observation, name, "train" if name == "loss" else "compare")["band"] = band

    assert not is_green(observation)


@pytest.mark.parametrize(
    "metric",
    [
        *("kl_trained_adapter", "kl_trained_base", "kl_trained_merged", "max_logprob_diff", "tensors_exact_fraction"),
        *("dtype_changes", "keys_missing", "files_missing"),
    ],
)
@pytest.mark.parametrize("value", [None, 1])
def test_a_metric_that_is_not_its_check_s_is_no_pass(metric: str, value: int | None) -> None:
    observation = complete_observation()
    observation["metrics"][metric] = value

    assert not is_green(observation)


def changed(**fields: Any) -> Callable[[dict[str, Any]], None]:
    return lambda observation: observation.update(fields)


def with_kinds(*kinds: str) -> Callable[[dict[str, Any]], None]:
    def change(observation: dict[str, Any]) -> None:
        observation["facts"]["kinds"] = kinds

    return change


def with_signal(observation: dict[str, Any]) -> None:
    observation["stages"]["merge"]["signal"] = 11


@pytest.mark.parametrize(
    "change",
    [
        changed(base_sha256=None),
        changed(base_sha256="x"),
        changed(device=None),
        changed(device="NVIDIA H100"),
        changed(training=None),
        changed(training={"loss": [1.0]}),
        changed(training={"loss": [1.0, 2.0]}),
        changed(merge={"attempted": 7, "applied": 7}),
        changed(running="merge"),
        with_signal,
        with_kinds("expert"),
        with_kinds("attention"),
    ],
)
def test_a_record_that_says_two_things_is_no_pass(change: Callable[[dict[str, Any]], None]) -> None:
    observation = complete_observation()
    change(observation)

    assert not is_green(observation)


def test_kinds_of_the_merge_that_got_no_lora_are_no_pass() -> None:
    observation = complete_observation()
    parts = {"expert": {"attempted": 5, "applied": 5}, "dense": {"attempted": 1, "applied": 1}}
    observation["merge"]["by_kind"] = parts

    assert not is_green(observation)


def test_experts_that_were_not_quantised_are_no_pass() -> None:
    def counted(**experts: int) -> dict[str, Any]:
        kind = {"stored_bytes": 1, "bf16_bytes": 2, **experts}
        return complete_observation() | {"quantization": {"kinds": {"experts": kind}}}

    for observation in (counted(quantized=6, plain=1), counted(quantized=0, plain=0)):
        observation["facts"]["quantized"] = True
        observation["checks"].append(
            {"name": "quantized", "stage": "load", "value": "6/6", "band": "== 6/6", "passed": True}
        )

        assert "their counts say otherwise" in str(finished(observation).stages["load"].reason)


def test_a_bound_is_read_as_it_is_printed() -> None:
    """``<= {band:g}`` shows six digits; a value between the bound and what is shown of it is no contradiction."""
    bound, value = 1.234564e-9, 1.234563e-9
    observation = complete_observation()
    find(observation, "kl", "compare").update(value=value, band=f"<= {bound:g}")
    observation["metrics"]["kl_trained_merged"] = value

    assert f"{bound:g}" == "1.23456e-09"
    assert is_green(observation)
