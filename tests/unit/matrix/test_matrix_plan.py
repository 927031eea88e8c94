"""From a profile to cells: counted by hand on a matrix that is small enough for it."""

from __future__ import annotations

import fnmatch
import json
import shlex
from collections.abc import Callable

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from harness.contract.cell_fields import DEFAULTS
from harness.errors import ConfigurationError, NothingSelectedError, UnknownNameError
from harness.matrix.catalogue import Catalogue, read_catalogue
from harness.matrix.cell import Cell, Stack
from harness.matrix.combine import Strategy
from harness.matrix.config import AXES, Block, MatrixConfig, known_names
from harness.matrix.plan import (
    Selection,
    all_cells,
    one_cell,
    parse_shard,
    plan_cells,
)
from harness.matrix.plan_views import github_matrix, plan_json, plan_rows

Load = Callable[..., MatrixConfig]
FIRST, OLD, NEWEST = (
    "tf5.5.0-peft0.19.1-trl0.25.1",
    "tf4.57.6-peft0.19.1-trl0.25.1",
    "tf5.23.0-peft0.21.2-trl1.16.0",
)
PYTHON = "+python=3.12"

DEFAULT_IDS = [
    f"alpha/lora@{FIRST}",
    f"alpha/lora-experts@{FIRST}",
    f"beta/lora@{FIRST}",
    f"beta/lora-experts@{FIRST}",
    f"alpha/lora@{OLD}",
    f"beta/lora@{OLD}",
    f"alpha/lora@{NEWEST}{PYTHON}",
    f"beta/lora@{NEWEST}{PYTHON}",
]


def ids(cells: tuple[Cell, ...]) -> list[str]:
    return [cell.id for cell in cells]


def test_a_profile_is_the_ordered_union_of_its_blocks(config: MatrixConfig, catalogue: Catalogue) -> None:
    assert ids(plan_cells(config, catalogue, Selection())) == DEFAULT_IDS


def test_the_order_of_blocks_does_not_matter(load: Load, catalogue: Catalogue) -> None:
    first, second = '{ recipes = ["lora"] }', '{ recipes = ["lora*"], stacks = ["tf5.5.0-*"] }'
    config = load(f"[{first}, {second}]", f"[{second}, {first}]")

    assert ids(plan_cells(config, catalogue, Selection())) == DEFAULT_IDS


def test_the_full_cross_has_the_variants_that_families_have(config: MatrixConfig, catalogue: Catalogue) -> None:
    cells = plan_cells(config, catalogue, Selection(profile="nightly"))

    # 3 stacks x 2 recipes x 2 geometries x 2 dtypes, times 1 variant of alpha and 2 of beta
    assert len(cells) == 3 * 2 * 2 * 2 * 3
    assert {cell.variant for cell in cells if cell.family == "alpha"} == {"published"}
    assert f"beta/lora@{FIRST}+dtype=bf16+geometry=square+variant=fused" in ids(cells)
    assert ids(all_cells(config, catalogue))[: len(DEFAULT_IDS)] == DEFAULT_IDS
    assert set(ids(all_cells(config, catalogue))) == set(ids(cells))


@pytest.mark.parametrize(("strategy", "count"), [("full", 12), ("pairwise", 6), ("extremes", 5)])
def test_a_block_s_strategy_thins_its_combinations(
    config: MatrixConfig, catalogue: Catalogue, strategy: Strategy, count: int
) -> None:
    """Of 3 stacks, 2 recipes and 2 dtypes: any stack with any recipe are 6; all first, all last, and three between."""
    block = Block(recipes=("*",), families=("alpha",), dtypes=("*",), strategy=strategy)
    profiles = {"default": config.profiles["default"].model_copy(update={"cells": (block,)})}

    cells = plan_cells(config.model_copy(update={"profiles": profiles}), catalogue, Selection())

    assert len(cells) == count


@pytest.mark.parametrize("key", [key for key in Block.model_fields if key in AXES])
def test_each_key_of_a_block_varies_its_field(config: MatrixConfig, catalogue: Catalogue, key: str) -> None:
    """A key that is read and not planned would be believed to widen a profile."""
    field, plain = AXES[key], config.profile("default").cells[0]
    profiles = {
        name: config.profiles["default"].model_copy(update={"cells": (plain.model_copy(update={key: globs}),)})
        for name, globs in (("default", getattr(plain, key)), ("wide", ("*",)))
    }
    cells = plan_cells(config.model_copy(update={"profiles": profiles}), catalogue, Selection(profile="wide"))

    assert len({str(getattr(cell, field)) for cell in cells}) == len(known_names(config, catalogue)[key]) > 1


def test_a_key_of_a_block_that_is_left_out_is_the_default() -> None:
    block = Block(recipes=("lora",))
    assert Block.model_fields.keys() - AXES.keys() == {"selections", "strategy", "introspected"}
    assert block.selections == block.introspected == ()

    assert {AXES[key]: getattr(block, key) for key in AXES} == {
        "stack": ("*",), "family": ("*",), "recipe": ("lora",),
        **{field: (str(DEFAULTS[field]),) for field in AXES.values() if field in DEFAULTS},
    }  # fmt: skip


def test_a_block_whose_families_lack_its_variants_is_an_error(load: Load, catalogue: Catalogue) -> None:
    config = load('{ recipes = ["lora"] }', '{ recipes = ["lora"], families = ["alpha"], variants = ["fused"] }')

    with pytest.raises(ConfigurationError, match=r"profiles\.default\.cells\.0"):
        plan_cells(config, catalogue, Selection())


def test_selectors_add_up_and_keep_the_order(config: MatrixConfig, catalogue: Catalogue) -> None:
    chosen = Selection(select=("beta/*@tf4*", "alpha/*", f"alpha/lora@{FIRST}"))

    assert ids(plan_cells(config, catalogue, chosen)) == [DEFAULT_IDS[index] for index in (0, 1, 4, 5, 6)]


def test_an_exact_id_selects_its_cell_alone(config: MatrixConfig, catalogue: Catalogue) -> None:
    for cell_id in DEFAULT_IDS:
        assert ids(plan_cells(config, catalogue, Selection(select=(cell_id,)))) == [cell_id]


def test_device_and_interpreter_are_part_of_the_ids_that_are_selected(
    config: MatrixConfig, catalogue: Catalogue
) -> None:
    chosen = Selection(select=("alpha/*+device=cuda+unmanaged=yes",), device="cuda", unmanaged=True)

    assert ids(plan_cells(config, catalogue, chosen)) == [
        f"alpha/lora@{FIRST}+device=cuda+unmanaged=yes",
        f"alpha/lora-experts@{FIRST}+device=cuda+unmanaged=yes",
        f"alpha/lora@{OLD}+device=cuda+unmanaged=yes",
    ]


def test_a_selector_without_cells_names_the_nearest_ids(config: MatrixConfig, catalogue: Catalogue) -> None:
    with pytest.raises(NothingSelectedError) as caught:
        plan_cells(config, catalogue, Selection(select=("alpha/*", "betta/lora@tf4.57.6*")))

    assert caught.value.exit_code == 3
    assert "'betta/lora@tf4.57.6*' selects none of the 8 cells" in caught.value.message
    assert f"beta/lora@{OLD}" in (caught.value.remedy or "")


def test_a_selector_of_another_profile_says_which(config: MatrixConfig, catalogue: Catalogue) -> None:
    with pytest.raises(NothingSelectedError) as caught:
        plan_cells(config, catalogue, Selection(select=("*+dtype=bf16",)))

    # 2 stacks x 2 recipes x 2 families; the ids of the stack with an interpreter end in that
    assert caught.value.remedy == "Profile 'nightly' has 8 such cells: use --profile nightly."


def test_an_unknown_profile_is_an_error(config: MatrixConfig, catalogue: Catalogue) -> None:
    with pytest.raises(UnknownNameError, match="Did you mean 'default'"):
        plan_cells(config, catalogue, Selection(profile="defualt"))


@settings(suppress_health_check=[HealthCheck.function_scoped_fixture], deadline=None, max_examples=30)
@given(count=st.integers(1, 8), glob=st.sampled_from(["*", "alpha/*", "*@tf5*"]))
def test_shards_divide_the_plan_evenly_without_overlap(
    config: MatrixConfig, catalogue: Catalogue, count: int, glob: str
) -> None:
    wanted = [cell_id for cell_id in DEFAULT_IDS if fnmatch.fnmatchcase(cell_id, glob)]
    shards = []
    for index in range(1, count + 1):
        selection = Selection(select=(glob,), shard=(index, count), seconds=lambda _: 5)
        if index > len(wanted):
            with pytest.raises(NothingSelectedError, match=f"only {len(wanted)} cells"):
                plan_cells(config, catalogue, selection)
        else:
            shards.append(ids(plan_cells(config, catalogue, selection)))

    assert [cell_id for shard in shards for cell_id in shard] == wanted
    assert max(map(len, shards)) - min(map(len, shards)) <= 1


def test_a_shard_is_a_part_of_a_whole() -> None:
    assert parse_shard("2/5") == (2, 5)
    for text in ("0/3", "4/3", "1", "a/b", "1/0", "-1/2", "1/2/3", ""):
        with pytest.raises(ConfigurationError, match="--shard"):
            parse_shard(text)


def test_the_table_shows_what_is_not_the_default(config: MatrixConfig, catalogue: Catalogue) -> None:
    row = plan_rows(plan_cells(config, catalogue, Selection(profile="nightly")))[-1]

    assert row == {
        "transformers": "5.23.0",
        "peft": "0.21.2",
        "trl": "1.16.0",
        "family": "beta",
        "recipe": "lora-experts",
        "options": "dtype=bf16 geometry=square python=3.12 variant=fused",
        "id": f"beta/lora-experts@{NEWEST}+dtype=bf16+geometry=square+python=3.12+variant=fused",
    }


def test_the_json_plan_holds_complete_cells(config: MatrixConfig, catalogue: Catalogue) -> None:
    selection = Selection(select=("*@tf4*",), shard=(2, 2))
    cells = plan_cells(config, catalogue, selection)
    document = json.loads(plan_json(cells, selection))

    assert document["profile"] == "default"
    assert document["shard"] == "2/2"
    (only,) = document["cells"]
    assert only.pop("id") == f"beta/lora@{OLD}"
    assert only.pop("reproduce").startswith("harness run --model beta --recipe lora --transformers 4.57.6")
    assert Cell.model_validate(only) == cells[0]


@pytest.mark.parametrize(
    "selection",
    [
        Selection(),
        Selection(profile="nightly"),
        Selection(select=("beta/*",)),
        Selection(shard=(2, 3)),
        Selection(device="cuda", select=("alpha/*",)),
    ],
)
def test_the_jobs_of_a_github_matrix_run_the_plan(
    config: MatrixConfig, catalogue: Catalogue, selection: Selection
) -> None:
    cells = plan_cells(config, catalogue, selection)
    text = github_matrix(cells, selection)
    jobs = json.loads(text)["include"]

    assert "\n" not in text
    run = []
    for job in jobs:
        words = shlex.split(job["arguments"])
        options = list(zip(words[::2], words[1::2], strict=True))
        again = Selection(
            profile=dict(options)["--profile"],
            select=tuple(value for option, value in options if option == "--select"),
            device="cuda" if ("--device", "cuda") in options else "cpu",
        )
        planned = plan_cells(config, catalogue, again)
        assert len(planned) == job["cells"]
        assert {cell.stack.id for cell in planned} == {job["stack"]}
        run += ids(planned)
    assert run == ids(cells)


def test_a_cell_can_be_named_by_its_parts(config: MatrixConfig, catalogue: Catalogue) -> None:
    cell = one_cell(catalogue, config.declared[0], family="beta", recipe="lora", variant="fused", seed=3)

    assert cell.id == f"beta/lora@{FIRST}+seed=3+variant=fused"


@pytest.mark.parametrize(
    ("options", "words"),
    [
        ({"family": "beta-moe"}, "unknown model 'beta-moe'. Did you mean 'beta'?"),
        (
            {"family": "mixtral", "geometry": "square"},
            "geometry square is for the families that have a file here, and mixtral has none",
        ),
        (
            {"family": "mixtral", "variant": "fused"},
            "variant fused is for the families that have a file here, and mixtral has none",
        ),
        ({"recipe": "lora-expert"}, "Did you mean 'lora-experts'?"),
        ({"geometry": "sqare"}, "unknown geometry 'sqare'. Did you mean 'square'?"),
        ({"engine": "refrence"}, "Did you mean 'reference'?"),
        ({"fault": "base-copeid"}, "Did you mean 'base-copied'?"),
        ({"variant": "fused"}, "unknown variant of alpha 'fused'."),
        ({"dtype": "bfloat16"}, "--dtype: unknown value 'bfloat16'. Did you mean 'bf16'?"),
        ({"seed": -1}, "--seed: -1: "),
    ],
)
def test_a_cell_of_unknown_parts_is_refused(
    config: MatrixConfig, catalogue: Catalogue, options: dict[str, object], words: str
) -> None:
    parts = {"family": "alpha", "recipe": "lora", **options}
    with pytest.raises(ConfigurationError) as caught:
        one_cell(catalogue, config.declared[0], **parts)  # type: ignore[arg-type]  # what a command line may hold

    assert words in caught.value.message


def test_a_cell_has_its_recipes_geometry_unless_another_is_asked_for() -> None:
    shipped, stack = read_catalogue(), Stack(transformers="5.5.0", peft="0.19.1", trl="0.25.1")

    assert one_cell(shipped, stack, family="qwen3_moe", recipe="qlora4").geometry == "blocks"
    assert one_cell(shipped, stack, family="qwen3_moe", recipe="qlora4-shimmed", geometry=None).geometry == "blocks"
    assert one_cell(shipped, stack, family="qwen3_moe", recipe="qlora4", geometry="narrow").geometry == "narrow"
    assert one_cell(shipped, stack, family="qwen3_moe", recipe="lora", geometry=None).geometry == "distinct"
