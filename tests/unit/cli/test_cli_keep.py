"""``--keep`` names what a cell has left behind, and nothing that is not there."""

from __future__ import annotations

import importlib
from pathlib import Path
from typing import Any

import pytest

RUN: Any = importlib.import_module("harness.cli.run")  # the package calls the function of that name the same


@pytest.mark.parametrize(
    ("made", "said"),
    [
        ((), ", without a checkpoint"),
        (("base",), ", with base"),
        (("base", "adapter"), ", with base and adapter"),
        (("base", "adapter", "merged"), ", with base, adapter and merged"),
    ],
)
def test_only_what_is_there_is_named(tmp_path: Path, made: tuple[str, ...], said: str) -> None:
    (tmp_path / "request.json").write_text("{}")
    for name in made:
        (tmp_path / name).mkdir()
        (tmp_path / name / "config.json").write_text("{}")

    assert RUN.work_directory(tmp_path) == f"work directory: {tmp_path}{said}"


def test_an_empty_folder_is_no_checkpoint(tmp_path: Path) -> None:
    (tmp_path / "merged").mkdir()

    assert RUN.work_directory(tmp_path).endswith(", without a checkpoint")


def test_a_cell_that_ended_before_it_wrote_anything_has_none(tmp_path: Path) -> None:
    assert str(tmp_path) not in RUN.work_directory(tmp_path / "none")
