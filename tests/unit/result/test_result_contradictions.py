"""What contradicts itself is no result: numbers that are none, counts, controls, the name of a device."""

from __future__ import annotations

from typing import Any

import pytest
from contract_samples import plain_cell
from hypothesis import given
from hypothesis import strategies as st
from pydantic import ValidationError

from harness.result import CellResult, Check, ControlResult, MergeCounts, TensorCounts


@pytest.mark.parametrize(
    "value",
    [
        *(float("nan"), float("inf"), float("-inf")),
        *("nan", "NaN", "inf", "-inf", "Infinity", "-Infinity", "infinity", " +inf ", "-nan"),
    ],
)
def test_a_check_of_no_number_never_passed(value: float | str) -> None:
    said = {"name": "kl", "stage": "compare", "value": value, "band": "<= 1", "passed": True}

    assert not Check.model_validate(said).passed
    assert not Check.model_validate_json(Check.model_construct(**said).model_dump_json()).passed


@pytest.mark.parametrize("value", [None, 0, 1e-9, "28/28", "kl, logprob", "nothing", "1e3"])
def test_a_check_of_something_may_pass(value: float | str | None) -> None:
    assert Check(name="kl", stage="compare", value=value, band="any", passed=True).passed


@given(st.dictionaries(st.sampled_from(["attempted", "applied", "dropped", "wrong"]), st.integers(-3, 3), min_size=1))
def test_no_count_is_negative(counts: dict[str, Any]) -> None:
    fits = min(counts.values()) >= 0 and counts.get("attempted", 0) == sum(counts.values()) - counts.get("attempted", 0)
    if fits:
        TensorCounts(**counts)
    else:
        with pytest.raises(ValidationError):
            TensorCounts(**counts)


def test_counts_by_kind_add_up_to_the_whole() -> None:
    one, two = TensorCounts(attempted=1, dropped=1), TensorCounts(attempted=2, applied=2)

    MergeCounts(attempted=3, applied=2, dropped=1, by_kind={"expert": one, "attention": two})
    with pytest.raises(ValidationError, match="3 tensors applied, but 2 by kind"):
        MergeCounts(attempted=3, applied=3, by_kind={"expert": one, "attention": two})


@pytest.mark.parametrize("by", [[], ["applied", "kl"], ["kl", "logprob", "samples"]])
def test_a_control_is_rejected_by_every_check_that_its_fault_names(by: list[str]) -> None:
    ControlResult(name="base-copied", rejected=False, by=by)
    with pytest.raises(ValidationError, match="base-copied is said to be rejected, but let through by"):
        ControlResult(name="base-copied", rejected=True, by=by)


def test_a_control_that_is_no_fault_proves_nothing_and_is_kept() -> None:
    assert ControlResult(name="fault", rejected=True).name == "fault"


@pytest.mark.parametrize(
    "device",
    [
        *("cpu", "NVIDIA H100 80GB HBM3", "NVIDIA A100-SXM4-80GB MIG 1g.10gb", "AMD Radeon RX 7900 XT/XTX (gfx1100)"),
    ],
)
def test_what_a_gpu_is_called_is_a_device(device: str) -> None:
    assert CellResult(cell=plain_cell(), cell_id=plain_cell().id, outcome="pass", device=device).device == device


@pytest.mark.parametrize("device", ["=1+1", "@octocat", "-x", "a|b", "a\n# b", "<img>", "[a](b)", "a`b", ""])
def test_other_text_is_no_device(device: str) -> None:
    with pytest.raises(ValidationError):
        CellResult(cell=plain_cell(), cell_id=plain_cell().id, outcome="pass", device=device)
