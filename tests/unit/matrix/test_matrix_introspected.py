"""Families that no file describes: what a block says of them, and which cells it comes to."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import pytest

from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.catalogue import Catalogue, RecipeFacts
from harness.matrix.config import MatrixConfig
from harness.matrix.plan import Selection, needed_stacks, one_cell, plan_cells, reasons

Load = Callable[..., MatrixConfig]
FIRST, OLD = "tf5.5.0-peft0.19.1-trl0.25.1", "tf4.57.6-peft0.19.1-trl0.25.1"


def _config(load: Load, **block: object) -> MatrixConfig:
    cells = [{"stacks": [FIRST, OLD], "recipes": ["lora"], "introspected": ["*"], **block}]
    return load(profiles={"default": {"description": "d", "cells": cells}})


def _known(config: MatrixConfig, **families: tuple[str, ...]) -> Selection:
    keys = {stack.id: stack.key for stack in config.declared}
    return Selection(known={keys[FIRST]: families["first"], keys[OLD]: families["old"]})


def test_each_stack_has_the_families_that_it_knows(load: Load, catalogue: Catalogue) -> None:
    config = _config(load)
    selection = _known(config, first=("mixtral", "zaya", "alpha"), old=("mixtral",))

    assert [cell.id for cell in plan_cells(config, catalogue, selection)] == [
        f"mixtral/lora@{FIRST}", f"zaya/lora@{FIRST}", f"alpha/lora@{FIRST}", f"mixtral/lora@{OLD}",
    ]  # fmt: skip
    assert reasons(config, catalogue, selection)[f"zaya/lora@{FIRST}"] == ("profiles.default.cells.0",)


def test_globs_choose_among_them(load: Load, catalogue: Catalogue) -> None:
    config = _config(load, introspected=["mi*"], stacks=[FIRST])
    selection = _known(config, first=("mixtral", "zaya"), old=())

    assert [cell.family for cell in plan_cells(config, catalogue, selection)] == ["mixtral"]

    config = _config(load, introspected=["mixtrall"], stacks=[FIRST])
    with pytest.raises(UnknownNameError, match="mixtral"):
        plan_cells(config, catalogue, selection)


def test_the_stacks_to_be_asked_are_those_of_such_blocks_alone(load: Load, catalogue: Catalogue) -> None:
    config = _config(load, stacks=[OLD])

    assert [stack.id for stack in needed_stacks(config, catalogue, Selection())] == [OLD]
    assert needed_stacks(_config(load, introspected=[]), catalogue, Selection()) == ()


def test_what_only_a_file_can_say_is_refused_of_other_families(load: Load, catalogue: Catalogue) -> None:
    config = _config(load)
    written = replace(catalogue, facts_of={"lora": RecipeFacts(kinds=("expert",), quantized=False, as_written=True)})

    assert one_cell(catalogue, config.declared[0], family="mixtral", recipe="lora").family == "mixtral"
    with pytest.raises(ConfigurationError, match="mixtral has no file of its own, and recipe lora is for families"):
        one_cell(written, config.declared[0], family="mixtral", recipe="lora")
    assert one_cell(written, config.declared[0], family="alpha", recipe="lora").family == "alpha"
