"""The tables of families and recipes say what the files say, and a file that says nothing is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.cli.checkpoint_tables import family_table, recipe_table
from harness.errors import HarnessError

PACKAGE = Path(__file__).resolve().parents[3] / "harness"


@pytest.fixture
def worker(tmp_path: Path) -> Path:
    """A copy of the folders, to add to."""
    for folder in ("worker/checkpoints", "worker/recipes", "engines", "faults"):
        shutil.copytree(PACKAGE / folder, tmp_path / folder)
    return tmp_path / "worker"


def test_a_file_that_is_added_is_a_row(worker: Path) -> None:
    family = """
import absent_library

LAYOUT_OF = "a repository"
SHOWS = (
    "one thing "
    "and another"
)


def build(g, v): ...
"""
    (worker / "checkpoints/families/alpha.py").write_text(family)
    (worker / "recipes/lora_dense.py").write_text('RECIPE = Recipe(summary="dense MLP", kinds=("dense",))\n')

    assert "\n| `alpha` | a repository | one thing and another |\n" in family_table(worker)
    assert "\n| `lora-dense` | dense MLP |\n" in recipe_table(worker)
    assert family_table(worker).count("\n") == family_table().count("\n") + 1


def test_a_file_that_does_not_say_it_is_named(worker: Path) -> None:
    (worker / "checkpoints/families/alpha.py").write_text('LAYOUT_OF = "a repository"\ndef build(g, v): ...\n')
    (worker / "recipes/lora_dense.py").write_text("RECIPE = Recipe(summary=TEXT, kinds=())\n")

    with pytest.raises(HarnessError, match=r"alpha\.py: write SHOWS as a literal text"):
        family_table(worker)
    with pytest.raises(HarnessError, match=r"lora_dense\.py: give RECIPE its summary"):
        recipe_table(worker)
