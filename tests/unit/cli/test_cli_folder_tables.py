"""The tables of folders say what the files say, and a file that says nothing is named."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from harness.cli.folder_tables import codec_table, family_table, recipe_table
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


def test_a_codec_is_named_by_its_file_unless_it_has_names_of_its_own(tmp_path: Path) -> None:
    (tmp_path / "__init__.py").write_text('"""The catalogue."""\n')
    (tmp_path / "int8_row.py").write_text(
        '"""A scale for each row: ``weight`` (I8).\n\nMore."""\nimport absent_library\n'
    )
    (tmp_path / "pair.py").write_text('"""Two codes."""\n\nFORMATS = ("one", "two")\n')

    table = codec_table(tmp_path)
    assert "\n| `int8_row` | A scale for each row: `weight` (I8) |\n" in table
    assert table.endswith("| `one`, `two` | Two codes |")

    (tmp_path / "mute.py").write_text("def find(base): ...\n")
    with pytest.raises(HarnessError, match=r"mute\.py: say in its docstring"):
        codec_table(tmp_path)
