"""Fused experts quantised on load, in every PEFT of the stacks: what is kept, what it computes, what merging does."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import pytest
from published_codes import FP4, NF4
from real_stacks import NEWEST, STANDARD, SWAPPED, made_once, rows_by_scenario

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]

PROGRAM = Path(__file__).with_name("quantization_cells.py")
ERROR = {"nf4": 0.1, "nf4 single": 0.1, "fp4": 0.13, "int8": 0.01}
"""Relative error of quantising normally distributed weights, rounded up: 0.091, 0.091, 0.119, 0.006 are expected."""
FLOAT32 = 2e-7
"""A few roundings of float32: the batched path adds up experts' gradients in another order."""

Rows = list[dict[str, Any]]


@pytest.fixture(scope="module", params=[SWAPPED, STANDARD, NEWEST])
def said(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> dict[str, Rows]:
    """What the program said on one stack, by scenario."""
    stack_id, name = request.param, f"quantization-{request.param}"
    found: dict[str, Rows] = made_once(
        tmp_path_factory, name, lambda: rows_by_scenario(stack_id, PROGRAM, tmp_path_factory.mktemp(name))
    )
    return found


def test_every_expert_of_every_family_is_quantised_where_transformers_alone_leaves_them(said: dict[str, Rows]) -> None:
    rows = said["loads"]

    assert {(row["family"], row["code"]) for row in rows} == {
        (family, code) for family in ("qwen3_moe", "glm4_moe", "deepseek_v3", "qwen3_5_moe") for code in ERROR
    }
    for row in rows:
        assert row["plain"] == 0 < row["quantized"]
        assert row["left_by_transformers"] == row["quantized"]
        assert row["quantized_by_transformers"] == 0
        assert row["bytes_of_16_bits"] <= (0.55 if row["code"] == "int8" else 0.30)
        assert row["error"] <= ERROR[row["code"]]
        assert row["as_bitsandbytes"]


@pytest.mark.parametrize(("code", "published"), [("nf4", NF4), ("nf4 single", NF4), ("fp4", FP4)])
def test_what_is_packed_has_the_published_table(said: dict[str, Rows], code: str, published: tuple[float, ...]) -> None:
    tables = [table for row in said["loads"] if row["code"] == code for table in row["tables"]]

    assert len(tables) >= 4 * 2, "of four families, two parameters at least"
    for table in tables:
        assert table == pytest.approx(published, abs=1e-6)


def test_logits_and_gradients_are_those_of_plain_peft_on_the_decoded_weights(said: dict[str, Rows]) -> None:
    rows = said["forwards"]

    assert len(rows) == 5 * 4 * 3
    for row in rows:
        assert row["logits"] <= FLOAT32 * 10, row
        assert row["gradients"] <= FLOAT32, row
        assert row["smallest"] > 1e-4, row
        assert row["tensors"] == (8 if row["case"] in {"plain", "square down"} else 4), row


def test_runs_of_experts_are_decoded_to_the_bit_as_experts_one_by_one(said: dict[str, Rows]) -> None:
    rows = said["runs"]

    assert {(row["code"], row["scales"]) for row in rows} == {(code, scales) for code in ERROR for scales in (64, 960)}
    assert len(rows) == 4 * 3 * 2
    for row in rows:
        assert row["runs"], row
        assert row["chosen"], row
        assert row["double"], row
        assert row["collected"] == [True] * 3, row


def test_merging_quantises_again_and_unmerging_puts_the_very_codes_back(said: dict[str, Rows]) -> None:
    assert len(said["merges"]) == 8
    for row in said["merges"]:
        assert row["changed"]
        assert row["error"] <= ERROR[row["code"]], row
        assert row["restored"]
        assert row["logits_after"] == 0


def test_adapters_are_switched_disabled_reloaded_and_merged_for_good(said: dict[str, Rows]) -> None:
    assert {row["code"] for row in said["adapters"]} == {"nf4", "int8"}
    for row in said["adapters"]:
        if row["stack"] == NEWEST:
            assert row["refused"] is None
            assert row["second"] <= FLOAT32 * 10
        else:
            assert "there are already other LoRA adapters" in row["refused"]
        assert row["default"] <= FLOAT32 * 10
        assert row["disabled"] == 0
        assert row["active"] > 0.1
        assert row["reloaded"] == 0
        assert row["left"] == []
        assert row["dequantised"] <= 1e-5
        assert row["generated"] == 3


def test_the_tensor_is_read_copied_moved_and_written_as_the_parameter_it_stands_for(said: dict[str, Rows]) -> None:
    (row,) = said["tensors"]

    assert all(row[name] for name in ("select", "index", "row", "transposed", "copy apart", "unharmed")), row
    assert row["half"] == ["torch.bfloat16", "QuantizedExperts", True]
    assert row["copy is"] == "QuantizedExperts"
    assert row["assigned"] < 0.01  # twice the values of codes are codes again, but for the double quantised scales
    assert (
        row["another order"] < 0.2
    )  # w += d; w -= e; w -= d is w - e, quantised three times, and not what was before d
    assert row["written otherwise"] == dict.fromkeys(
        ("mul_", "one expert", "+= on one expert", "foreach", "another shape", "broadcast"),
        "NotWritableError",
    )


def test_a_model_is_loaded_by_a_dictionary_and_by_device_maps_and_keeps_its_routers(said: dict[str, Rows]) -> None:
    rows = {row["case"]: row for row in said["ways_to_load"]}

    for case in ("dictionary", "auto", "cpu"):
        assert rows[case]["plain"] == 0 < rows[case]["quantized"], case
    assert rows["round trip"]["same"]
    assert rows["router"]["kinds"] == ["Linear", "Linear4bit"]


def test_casting_a_model_leaves_its_codes(said: dict[str, Rows]) -> None:
    assert [(row["case"], row["same"], row["left"]) for row in said["casts"]] == [
        ("prepare_model_for_kbit_training", True, []),
        ("float16", True, []),
        ("load_state_dict", True, []),
    ]


def test_no_callable_of_any_library_is_another_one_afterwards(said: dict[str, Rows]) -> None:
    assert [row["changed"] for row in said["patched"]] == [[]]
