"""Stacks that load the same base must say the same."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.contract.facts import CellFacts
from harness.matrix.agreement import disagreements
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult, QuantizationInfo, StageResult

STACKS = [Stack(transformers=f"5.{minor}.0", peft="0.19.1", trl="1.4.0") for minor in range(4)]
SAID = [-1.0, -2.5, None, -0.25, -3.0, -4.0]


def result_of(stack: Stack, said: list[float | None], *, recipe: str = "lora", base: str = "ab" * 32) -> CellResult:
    cell = Cell(family="qwen3_moe", recipe=recipe, stack=stack)
    stages = {"load": StageResult(result="pass")}
    return CellResult(cell=cell, cell_id=cell.id, outcome="pass", base_sha256=base, base_logprobs=said, stages=stages)


def moved(by: float, at: int = 0) -> list[float | None]:
    return [value + by if number == at and value is not None else value for number, value in enumerate(SAID)]


def test_stacks_that_differ_by_rounding_agree() -> None:
    assert not disagreements([result_of(stack, moved(1e-5 * n)) for n, stack in enumerate(STACKS)], band=1e-3)


def test_a_stack_that_says_other_than_most_is_named() -> None:
    results = [result_of(stack, SAID) for stack in STACKS[:3]] + [result_of(STACKS[3], moved(0.02))]
    found = disagreements(results, band=1e-3)

    assert list(found) == [results[3].cell_id]
    assert "by up to 0.02 nats" in found[results[3].cell_id]
    assert STACKS[0].id in found[results[3].cell_id]


def test_without_a_majority_all_are_named() -> None:
    results = [result_of(STACKS[0], SAID), result_of(STACKS[1], moved(0.02))]

    assert set(disagreements(results, band=1e-3)) == {result.cell_id for result in results}


def test_one_cell_of_a_stack_that_is_with_the_majority_can_be_named() -> None:
    odd = result_of(STACKS[0], moved(0.02, at=3), recipe="lora-experts")

    assert list(disagreements([*(result_of(stack, SAID) for stack in STACKS), odd], band=1e-3)) == [odd.cell_id]


@pytest.mark.parametrize(
    "other",
    [
        result_of(STACKS[1], moved(0.02), base="cd" * 32),
        result_of(STACKS[1], []),
        result_of(STACKS[1], [None, None, -9.0, None, -3.0, -4.0]),
        result_of(STACKS[1], moved(0.02, at=2)),
    ],
    ids=["another base", "nothing said", "nearly nowhere clear in both", "a near tie"],
)
def test_what_cannot_be_compared_is_no_disagreement(other: CellResult) -> None:
    assert not disagreements([result_of(STACKS[0], SAID), other], band=1e-3)


def test_where_loading_failed_it_is_known_already() -> None:
    failed = result_of(STACKS[1], moved(0.02))
    failed.stages["load"] = StageResult(result="fail")

    assert not disagreements([result_of(STACKS[0], SAID), failed], band=1e-3)


def test_other_seeds_have_other_prompts() -> None:
    other = result_of(STACKS[1], moved(0.02))
    other.seed = 1

    assert not disagreements([result_of(STACKS[0], SAID), other], band=1e-3)


@pytest.mark.parametrize("value", [float("nan"), float("inf"), float("-inf")])
@pytest.mark.parametrize("at", [0, 5])
def test_what_is_no_finite_number_is_named_and_others_are_not(value: float, at: int) -> None:
    said: list[float | None] = [value if number == at else one for number, one in enumerate(SAID)]
    results = [result_of(STACKS[0], SAID), result_of(STACKS[1], said), result_of(STACKS[2], SAID)]
    expected = {results[1].cell_id: "what the base model says is no finite number at 1 position"}

    assert disagreements(results, band=1e-3) == expected
    assert disagreements(results[1:2], band=1e-3) == expected


def test_quantised_lists_and_fused_parameters_have_other_codes() -> None:
    listed, fused = result_of(STACKS[0], SAID, recipe="qlora4"), result_of(STACKS[1], moved(0.02), recipe="qlora4")
    for result, is_fused in ((listed, False), (fused, True)):
        result.quantization = QuantizationInfo(kinds={})
        result.facts = CellFacts(kinds=("expert",), quantized=True, fused_experts=is_fused, defined=True)

    assert not disagreements([listed, fused], band=1e-3)
    assert listed.facts is not None
    listed.facts = replace(listed.facts, fused_experts=True)
    assert len(disagreements([listed, fused], band=1e-3)) == 2
