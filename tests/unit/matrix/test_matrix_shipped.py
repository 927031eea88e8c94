"""The ``matrix.toml`` and ``expectations.toml`` of this project."""

from __future__ import annotations

import itertools
from collections import Counter
from collections.abc import Sequence
from pathlib import Path

import pytest

from harness.matrix.catalogue import Catalogue, read_catalogue
from harness.matrix.cell import Stack
from harness.matrix.conditions import Condition
from harness.matrix.config import MatrixConfig, load_config
from harness.matrix.expectations import Expectation, check_expectations, load_expectations
from harness.matrix.plan import Selection, all_cells, needed_selections, plan_cells
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Bands as WorkerBands

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def catalogue() -> Catalogue:
    return read_catalogue()


@pytest.fixture(scope="module")
def config(catalogue: Catalogue) -> MatrixConfig:
    return load_config(ROOT / "matrix.toml", catalogue)


@pytest.fixture(scope="module")
def expectations() -> tuple[Expectation, ...]:
    return load_expectations(ROOT / "expectations.toml")


def test_the_six_stacks_in_order(config: MatrixConfig) -> None:
    assert [stack.id for stack in config.declared] == [
        "tf5.5.0-peft0.19.1-trl0.25.1",
        "tf5.5.0-peft0.18.1-trl0.25.1",
        "tf4.57.6-peft0.19.1-trl0.25.1",
        "tf5.5.0-peft0.19.1-trl1.4.0",
        "tf5.6.2-peft0.19.1-trl1.4.0",
        "tf5.23.0-peft0.21.2-trl1.16.0",
    ]
    assert {stack.pins["torch"] for stack in config.declared} == {"2.13.0"}
    assert {stack.pins["bitsandbytes"] for stack in config.declared} == {"0.50.2"}
    assert all({"accelerate", "datasets"} <= stack.pins.keys() for stack in config.declared)


def test_everything_that_exists_is_in_the_matrix(config: MatrixConfig, catalogue: Catalogue) -> None:
    """The file names no families and no recipes, so a new file is run without a line anywhere."""
    cells = all_cells(config, catalogue)

    assert (config.families, config.recipes) == (None, None)
    assert {cell.family for cell in cells} == set(catalogue.families)
    assert {cell.recipe for cell in cells} == set(catalogue.recipes)
    assert {cell.engine for cell in cells} == set(catalogue.engines)


def test_a_worker_is_told_every_band_by_its_name(config: MatrixConfig, catalogue: Catalogue) -> None:
    for engine, dtype, geometry in itertools.product(catalogue.engines, config.bands, catalogue.geometries):
        bands = config.bands_of(engine=engine, dtype=dtype, geometry=geometry)
        assert WorkerBands(**bands.model_dump()).signal_min == 0.1


def test_nightly_has_any_two_choices_together(config: MatrixConfig, catalogue: Catalogue) -> None:
    """What pairwise means, counted here anew: whatever two things a recipe of plain LoRA can be crossed with."""
    cells = plan_cells(config, catalogue, Selection(profile="nightly"))
    axes = ("stack", "family", "recipe", "geometry", "dtype")
    seen = {
        (one, parts[one], other, parts[other])
        for cell in cells
        for parts in [{"stack": cell.stack.id, **{axis: getattr(cell, axis) for axis in axes[1:]}}]
        for one, other in itertools.combinations(axes, 2)
    }
    values: dict[str, Sequence[object]] = {
        "stack": [stack.id for stack in config.declared],
        "family": catalogue.families,
        "recipe": [name for name in catalogue.recipes if name == "lora" or name.startswith("lora-")],
        "geometry": catalogue.geometries,
        "dtype": tuple(config.bands),
    }
    assert len(cells) < len(plan_cells(config, catalogue, Selection(profile="exhaustive"))) / 5
    for one, other in itertools.combinations(axes, 2):
        for first, second in itertools.product(values[one], values[other]):
            assert (one, first, other, second) in seen


def test_smoke_is_one_stack_and_every_family(config: MatrixConfig, catalogue: Catalogue) -> None:
    cells = plan_cells(config, catalogue, Selection(profile="smoke"))

    assert [cell.id for cell in cells] == [
        f"{family}/lora@tf5.5.0-peft0.19.1-trl0.25.1" for family in catalogue.families
    ]


def test_the_default_profile_asks_the_main_question_everywhere(config: MatrixConfig, catalogue: Catalogue) -> None:
    cells = plan_cells(config, catalogue, Selection())
    plain = Counter(cell.recipe for cell in cells if "+" not in cell.id)
    other = Counter(cell.id.partition("+")[2] for cell in cells if "+" in cell.id)

    families = len(catalogue.families)
    parts = [name for name in catalogue.recipes if name.startswith("lora-")]

    written = {"module-names": 6, "all-linear": 2, "target-parameters": 2}

    assert plain == {"lora": 6 * families, **dict.fromkeys(parts, 2 * families), **written}
    assert len(parts) >= 4
    assert other == {
        "geometry=square-gate-up": 3, "geometry=square-down": 3, "geometry=narrow": 3, "geometry=single": 3,
        "geometry=blocks": 4, "geometry=many": 2, "dtype=bf16": families, "engine=peft": families,
        "variant=tied": 8, "engine=peft+variant=tied": 1,
    }  # fmt: skip


def test_nightly_contains_the_other_profiles(config: MatrixConfig, catalogue: Catalogue) -> None:
    nightly = {cell.id for cell in plan_cells(config, catalogue, Selection(profile="nightly"))}

    for name in config.profiles:
        if needed_selections(config, name) or name == "exhaustive":
            continue  # what is found that day, and what nightly thins
        cells = (cell.model_copy(update={"seed": 0}) for cell in plan_cells(config, catalogue, Selection(profile=name)))
        assert {cell.id for cell in cells} <= nightly, "other seeds are for floors"


def test_the_selections_of_this_file_are_all_used(config: MatrixConfig) -> None:
    used = {it.name for name in config.profiles for it in needed_selections(config, name)}

    assert used == {it.name for it in config.selections} >= {"newest", "wide", "axolotl"}


def test_every_expectation_is_about_a_cell(
    config: MatrixConfig, catalogue: Catalogue, expectations: tuple[Expectation, ...]
) -> None:
    check_expectations(expectations, config, catalogue)


def test_a_condition_is_asked_once_for_each_stack(
    config: MatrixConfig,
    catalogue: Catalogue,
    expectations: tuple[Expectation, ...],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Every command checks the declarations, whose profiles have thousands of cells on a handful of stacks."""
    asked: list[str] = []
    holds = Condition.holds

    def counted(self: Condition, stack: Stack) -> bool:
        asked.append(stack.id)
        return holds(self, stack)

    monkeypatch.setattr(Condition, "holds", counted)
    check_expectations(expectations, config, catalogue)
    of_overrides = len(config.overrides) * len(config.declared)

    assert 0 < len(asked) <= len(expectations) * len(config.declared) + of_overrides


def test_the_adapter_reload_failure_is_declared_for_its_stack_alone(
    config: MatrixConfig, catalogue: Catalogue, expectations: tuple[Expectation, ...]
) -> None:
    (declared,) = (item for item in expectations if item.stage == "reload-adapter" and item.outcome == "error")
    cells = plan_cells(config, catalogue, Selection(profile="nightly"))

    assert {cell.stack.id for cell in cells if declared.applies(cell)} == {"tf5.6.2-peft0.19.1-trl1.4.0"}


def test_every_recipe_but_those_without_experts_fails_on_a_single_fused_expert(
    config: MatrixConfig, catalogue: Catalogue, expectations: tuple[Expectation, ...]
) -> None:
    """A recipe that trains no experts is an exclusion of that entry in ``expectations.toml``."""
    (declared,) = (item for item in expectations if item.match == "must match the size of tensor")
    cells = plan_cells(config, catalogue, Selection(profile="exhaustive", select=("*+geometry=single*",)))
    about = {(cell.stack.id, cell.recipe) for cell in cells if declared.applies(cell)}

    assert {"lora-experts", "lora-attention"} < {cell.recipe for cell in cells}
    assert about == {
        ("tf5.5.0-peft0.18.1-trl0.25.1", cell.recipe) for cell in cells if "expert" in recipe(cell.recipe).kinds
    }
