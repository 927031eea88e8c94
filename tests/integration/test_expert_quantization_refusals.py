"""What quantising experts, and training on them, refuses by name, in every PEFT that the stacks hold."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from real_stacks import NEWEST, STANDARD, SWAPPED, made_once, rows_by_scenario

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PROGRAM = Path(__file__).with_name("quantization_refusals.py")

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[SWAPPED, STANDARD, NEWEST])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """What the program said on one stack, by scenario."""
    stack_id, name = request.param, f"refusals-{request.param}"
    found: dict[str, Rows] = made_once(
        tmp_path_factory, name, lambda: rows_by_scenario(stack_id, PROGRAM, tmp_path_factory.mktemp(name))
    )
    return found


def test_what_cannot_be_is_refused_by_name(said: dict[str, Rows]) -> None:
    assert {row["case"]: row["refused"] for row in said["refusals"]} == {
        "unknown code": "UnknownSchemeError",
        "nearly a code": "UnknownSchemeError",
        "another's setting": "QloraConfigError",
        "no dtype": "QloraConfigError",
        "double int8": "UnknownSchemeError",
        "odd shape": "UnpackableShapeError",
        "missing experts": "LeftUnquantizedError",
        "missing Linear, 4 bits": "LeftUnquantizedError",
        "missing Linear, 8 bits": "LeftUnquantizedError",
        "wrong decode": "WrongDecodeError",
        "wrong decode of a Linear": "WrongDecodeError",
        "no kernel": "UnsupportedStackError",
        "not finite": "NotFiniteError",
        "not finite in a Linear": "NotFiniteError",
        "too large for the kernel": "WrongDecodeError",
        "an expert less": "ShapeMismatchError",
        "a projection less": "ShapeMismatchError",
        "other sizes": "ShapeMismatchError",
        "no such device": "UnsupportedStackError",
    }


def test_what_cannot_be_trained_is_refused_before_loading_where_peft_fails_late_or_never(said: dict[str, Rows]) -> None:
    refused = {row["case"] for row in said["configs"] if row["refused"] is not None}
    pefts_own = {row["case"] for row in said["configs"] if row["peft"] is not None}
    (shared,) = [row for row in said["configs"] if row["case"] == "gate_proj"]
    stack = shared["stack"]

    fails_late = {
        "dropout", "DoRA", "bias", "fan_in_fan_out", "orthogonal", "PiSSA", "PiSSA on Linears alone",
        "orthogonal on Linears alone",
    }  # fmt: skip
    assert pefts_own == fails_late
    assert refused == fails_late | {
        "OLoRA on Linears alone", "no adapter", "not ours", "another adapter",
        *({"a pattern", "all-linear"} if stack == STANDARD else ()),
        *(() if stack == SWAPPED else {"gate_proj"}),
    }  # fmt: skip
    assert {"fine", "rslora", "gaussian", "dropout on Linears alone"} <= {
        row["case"] for row in said["configs"]
    } - refused
    # The rule about names is PEFT's: from 0.19 on shared experts get nothing by them.
    assert (shared["shared"] > 0) == (stack == SWAPPED)
    assert all(row["refused"].startswith("QloraConfigError: ") for row in said["configs"] if row["refused"])


def test_what_got_a_lora_is_counted_by_name_and_a_name_that_nothing_has_is_refused(said: dict[str, Rows]) -> None:
    rows = {row["case"]: row for row in said["attachments"]}
    fine, parameter, linear = (rows[case] for case in ("fine", "misspelt parameter", "misspelt Linear"))

    assert rows["a router"]["counts"]["mlp.gate.weight"] == 2
    assert rows["a Linear's weight"]["counts"]["self_attn.o_proj.weight"] == 2
    assert "modules_to_save names" in rows["experts to save"]["refused"]
    assert fine["counts"] == {
        "q_proj": 2, "self_attn.v_proj": 2, "mlp.experts.gate_up_proj": 2, "mlp.experts.down_proj": 2,
    }  # fmt: skip
    assert parameter["refused"].startswith("'mlp.experts.dwn_proj' matches nothing in the model")
    assert linear["refused"].startswith("'query' matches nothing in the model")
