"""The line that reproduces a cell, read by the command's own parser: it is the same cell again."""

from __future__ import annotations

import importlib
import shlex
from collections.abc import Iterator
from pathlib import Path
from typing import Any, get_args, get_type_hints

import pytest
import typer
from hypothesis import given
from hypothesis import strategies as st

from harness.cli import app
from harness.cli.setup import load_setup
from harness.contract.cell_fields import DEFAULTS, SEEDS, CellFields
from harness.envs import open_chooser
from harness.matrix.cell import Cell
from harness.matrix.completion import complete_stack
from harness.matrix.plan import all_cells, one_cell

ROOT = Path(__file__).resolve().parents[3]
SETUP = load_setup(ROOT / "matrix.toml")
COMMAND = typer.main.get_command(app)


class PlannedError(Exception):
    """Takes the cell out of the command before anything is run."""


@pytest.fixture(scope="module", autouse=True)
def _nothing_is_run() -> Iterator[None]:
    def execute(_setup: object, cells: list[Cell], **_options: object) -> None:
        raise PlannedError(cells[0])

    command = importlib.import_module("harness.cli.run")  # the package calls the function of that name the same
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(command, "execute", execute)
        patch.setattr(command, "load_setup", lambda *_: SETUP)
        patch.setattr(command, "choose_device", lambda text, _python: text)
        patch.setattr(command, "refuse_where_it_is_none", lambda *_: None)  # of a planted fault another test asks that
        yield


def read(line: str) -> Cell:
    """Return the cell that a line of a shell runs."""
    program, *words = shlex.split(line)
    assert program == "harness"
    with pytest.raises(PlannedError) as planned:
        COMMAND.main(args=words, standalone_mode=False)
    (found,) = planned.value.args
    assert isinstance(found, Cell)
    return found


versions = st.sampled_from(["2.12.0", "2.12.0+cpu", "0.1.dev3", "7"])


def values_of(field: str, family: str) -> st.SearchStrategy[object]:
    """Return what a field of a cell can be: what its folder has, else what its type says."""
    folders = {
        "geometry": SETUP.catalogue.geometries,
        "variant": SETUP.catalogue.variants_of(family),
        "engine": SETUP.catalogue.engines,
        "fault": (None, *SETUP.catalogue.faults),
    }
    if field in folders:
        return st.sampled_from(folders[field])
    if field == "seed":
        return st.integers(0, SEEDS - 1)
    values = get_args(get_type_hints(CellFields)[field])
    assert values, f"say here which texts or numbers {field} can be"
    return st.sampled_from(values)


@st.composite
def cells(draw: Any) -> Cell:
    """Any cell that a command can name, of declared versions or of others."""
    family, recipe = draw(st.sampled_from(SETUP.catalogue.families)), draw(st.sampled_from(SETUP.catalogue.recipes))
    declared = draw(st.sampled_from(SETUP.config.declared))
    given_versions = {
        "transformers": draw(st.just(declared.transformers) | st.just("5.5.0rc1")),
        "peft": declared.peft,
        "trl": declared.trl,
    }
    completion = complete_stack(
        SETUP.config,
        given_versions,
        chooser=open_chooser,
        pins=draw(st.dictionaries(st.sampled_from(["torch", "numpy", "huggingface-hub"]), versions)),
        python=draw(st.none() | st.sampled_from(["3.11", "3.13"])),
    )
    options = {name: values_of(name, family) for name in DEFAULTS}
    drawn = {name: draw(values) for name, values in options.items()}
    return one_cell(SETUP.catalogue, completion.stack, family=family, recipe=recipe, **drawn)


@given(cells())
def test_the_line_that_reproduces_a_cell_is_that_cell(cell: Cell) -> None:
    assert read(cell.reproduce) == cell


def test_so_is_that_of_the_planned_cells() -> None:
    """Every 29th: planning is what takes long."""
    for cell in all_cells(SETUP.config, SETUP.catalogue)[::29]:
        assert read(cell.reproduce).id == cell.id
