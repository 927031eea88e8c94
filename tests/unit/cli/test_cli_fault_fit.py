"""A fault that is none in its cell is a mistake of the command line, in one sentence."""

from __future__ import annotations

import importlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.fault_fit import elsewhere, refuse_what_was_none, refuse_where_it_is_none
from harness.errors import ConfigurationError
from harness.faults import MergeFault, fault, fault_names
from harness.matrix.catalogue import read_catalogue
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult, StageResult

STACK = Stack(transformers="5.23.0", peft="0.21.2", trl="1.16.0")
RECIPES = read_catalogue().facts_of
ID = "qwen3_moe/lora@tf5.23.0-peft0.21.2-trl1.16.0"
TRACE = "[called by harness/worker/stages/merge.py:30 in merge; raised in harness/worker/stages/planting.py:89 in f]"


def of(name: str, recipe: str = "lora", **options: Any) -> Cell:
    return Cell.model_validate({"family": "qwen3_moe", "recipe": recipe, "stack": STACK, "fault": name, **options})


def ended(cell: Cell, stage: str, reason: str) -> CellResult:
    result = CellResult(cell=cell, cell_id=cell.id, outcome="error", seed=0)
    return result.model_copy(update={"stages": {stage: StageResult(result="error", reason=reason)}})


@pytest.mark.parametrize(
    ("name", "recipe", "options", "where"),
    [
        ("b-packing", "lora-attention", {}, "--model qwen3_moe --recipe lora"),
        ("b-packing", "lora", {"geometry": "single"}, "--model qwen3_moe --recipe lora"),
        ("dequantized-not-merged", "lora", {}, "--recipe qlora"),
        ("one-element-two-steps-off", "lora", {}, "--dtype bf16"),
    ],
)
def test_what_can_be_no_fault_is_refused_before_anything_is_run(
    name: str, recipe: str, options: dict[str, str], where: str
) -> None:
    cell = of(name, recipe, **options)
    with pytest.raises(ConfigurationError, match=f"--fault {name} would break nothing in ") as caught:
        refuse_where_it_is_none(cell, RECIPES[recipe])

    assert f"`harness faults --select {name}`" in str(caught.value.remedy)
    assert where in str(caught.value.remedy)
    assert caught.value.exit_code == 2


def test_every_fault_of_a_merge_is_let_through_in_its_own_cell() -> None:
    for name in fault_names():
        meant = {key: value for key, value in fault(name).cell.items() if key != "stack"}
        cell = of(name, **{"recipe": "lora", **meant})  # type: ignore[arg-type]
        refuse_where_it_is_none(cell, RECIPES[cell.recipe])
        assert list(elsewhere(cell)) == []
    assert sum(isinstance(fault(name), MergeFault) for name in fault_names()) > 20


@pytest.mark.parametrize(
    ("stage", "reason", "message"),
    [
        (
            "merge",
            f"FaultDoesNotApplyError: fault b-packing breaks nothing here: Facts(…, num_experts=None) {TRACE}",
            (f"--fault b-packing would break nothing in {ID}: its merge would be a right one."),
        ),
        (
            "train",
            (
                "FaultNotPlantedError: b-packing could not be planted: AttributeError: module 'trl' has no 'x', "
                f"because of AttributeError: module 'trl' has no 'x' {TRACE}"
            ),
            "--fault b-packing could not be planted: AttributeError: module 'trl' has no 'x' (in train).",
        ),
    ],
)
def test_what_turns_out_to_be_none_is_told_in_a_sentence(stage: str, reason: str, message: str) -> None:
    with pytest.raises(ConfigurationError) as caught:
        refuse_what_was_none(ended(of("b-packing"), stage, reason))

    assert caught.value.message == message
    assert caught.value.remedy


@pytest.mark.parametrize("name", ["b-packing", None])
def test_an_error_that_is_the_stack_s_is_no_mistake_of_the_command_line(name: str | None) -> None:
    refuse_what_was_none(ended(of("b-packing", fault=name), "train", f"RuntimeError: boom {TRACE}"))


def test_a_fault_that_is_meant_for_another_cell_says_so() -> None:
    name = next(name for name in fault_names() if "recipe" in fault(name).cell)

    (sentence,) = elsewhere(of(name, "lora-attention"))

    assert f"--recipe {fault(name).cell['recipe']}" in sentence


def test_the_result_of_such_a_cell_is_not_left_behind(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """What a report is made of has no cell that should not have been asked for."""
    left = tmp_path / "cells" / "qwen3_moe"
    left.mkdir(parents=True)

    def execute(_setup: object, cells: list[Cell], *, check: Callable[[CellResult], None], **_options: object) -> None:
        (left / f"{cells[0].file_stem}.json").write_text("{}")
        check(ended(cells[0], "merge", "FaultDoesNotApplyError: x"))

    monkeypatch.setattr(importlib.import_module("harness.cli.run"), "execute", execute)
    words = ["run", "--model", "qwen3_moe", "--peft", "0.19.1", "--fault", "b-packing", "--device", "cpu", "--out"]
    done = CliRunner().invoke(app, [*words, str(tmp_path)])

    assert isinstance(done.exception, ConfigurationError), done.output
    assert list(left.iterdir()) == []
