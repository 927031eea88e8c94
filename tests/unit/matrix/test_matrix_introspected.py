"""Families that no file describes: what a block says of them, and which cells it comes to."""

from __future__ import annotations

from dataclasses import replace

import pytest

from harness.errors import ConfigurationError, UnknownNameError
from harness.matrix.catalogue import Catalogue, RecipeFacts
from harness.matrix.config import Block, MatrixConfig, Profile
from harness.matrix.plan import Selection, needed_stacks, one_cell, plan_cells, reasons

FIRST, OLD = "tf5.5.0-peft0.19.1-trl0.25.1", "tf4.57.6-peft0.19.1-trl0.25.1"


def _with_block(config: MatrixConfig, **block: object) -> MatrixConfig:
    cells = Block.model_validate({"stacks": (FIRST, OLD), "recipes": ("lora",), "introspected": ("*",), **block})
    return config.model_copy(update={"profiles": {"default": Profile(description="d", cells=(cells,))}})


def _known(config: MatrixConfig, **families: tuple[str, ...]) -> Selection:
    keys = {stack.id: stack.key for stack in config.declared}
    return Selection(known={keys[FIRST]: families["first"], keys[OLD]: families["old"]})


def test_each_stack_has_the_families_that_it_knows(config: MatrixConfig, catalogue: Catalogue) -> None:
    config = _with_block(config)
    selection = _known(config, first=("mixtral", "zaya", "alpha"), old=("mixtral",))

    assert [cell.id for cell in plan_cells(config, catalogue, selection)] == [
        f"alpha/lora@{FIRST}", f"mixtral/lora@{FIRST}", f"zaya/lora@{FIRST}", f"mixtral/lora@{OLD}",
    ]  # fmt: skip
    assert reasons(config, catalogue, selection)[f"zaya/lora@{FIRST}"] == ("profiles.default.cells.0",)


def test_blocks_do_not_hide_each_other_s_families(config: MatrixConfig, catalogue: Catalogue) -> None:
    """The first family of one block is not the first of the next, nor of a block that names families with a file."""
    blocks = [
        Block.model_validate({"stacks": (FIRST,), "recipes": ("lora",), **more})
        for more in ({"introspected": ("mixtral",)}, {"introspected": ("zaya",)}, {"families": ("alpha", "beta")})
    ]
    config = config.model_copy(update={"profiles": {"default": Profile(description="d", cells=tuple(blocks))}})
    selection = _known(config, first=("mixtral", "zaya"), old=())

    assert [cell.family for cell in plan_cells(config, catalogue, selection)] == ["alpha", "beta", "mixtral", "zaya"]
    assert reasons(config, catalogue, selection)[f"zaya/lora@{FIRST}"] == ("profiles.default.cells.1",)


def test_a_profile_has_no_cell_that_only_a_file_can_make(config: MatrixConfig, catalogue: Catalogue) -> None:
    """Else its geometry would be ignored, and the cell pass as what it is not."""
    config = _with_block(config, stacks=(FIRST,), geometries=("*",))
    selection = _known(config, first=("mixtral", "alpha"), old=())

    assert [(cell.family, cell.geometry) for cell in plan_cells(config, catalogue, selection)] == [
        ("alpha", "distinct"), ("alpha", "square"), ("mixtral", "distinct"),
    ]  # fmt: skip


def test_globs_choose_among_them(config: MatrixConfig, catalogue: Catalogue) -> None:
    config = _with_block(config, introspected=("mi*",), stacks=(FIRST,))
    selection = _known(config, first=("mixtral", "zaya"), old=())

    assert [cell.family for cell in plan_cells(config, catalogue, selection)] == ["mixtral"]

    config = _with_block(config, introspected=("mixtrall",), stacks=(FIRST,))
    with pytest.raises(UnknownNameError, match="mixtral"):
        plan_cells(config, catalogue, selection)


def test_the_stacks_to_be_asked_are_those_of_such_blocks_alone(config: MatrixConfig, catalogue: Catalogue) -> None:
    config = _with_block(config, stacks=(OLD,))

    assert [stack.id for stack in needed_stacks(config, catalogue, Selection())] == [OLD]
    plain = Block(recipes=("lora",))
    none = config.model_copy(update={"profiles": {"default": Profile(description="d", cells=(plain,))}})
    assert needed_stacks(none, catalogue, Selection()) == ()


def test_what_only_a_file_can_say_is_refused_of_other_families(config: MatrixConfig, catalogue: Catalogue) -> None:
    config = _with_block(config)
    written = replace(catalogue, facts_of={"lora": RecipeFacts(kinds=("expert",), quantized=False, as_written=True)})

    assert one_cell(catalogue, config.declared[0], family="mixtral", recipe="lora").family == "mixtral"
    with pytest.raises(
        ConfigurationError, match="recipe lora is for the families that have a file here, and mixtral has none"
    ):
        one_cell(written, config.declared[0], family="mixtral", recipe="lora")
    assert one_cell(written, config.declared[0], family="alpha", recipe="lora").family == "alpha"
