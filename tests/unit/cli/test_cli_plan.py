"""The table of ``harness plan`` explains its own columns; what programs read has no legend."""

from __future__ import annotations

import json

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.matrix.plan_views import COLUMNS, LEGEND, OUTLOOK_COLUMNS


def planned(*words: str) -> str:
    done = CliRunner().invoke(app, ["plan", "--profile", "smoke", *words])
    assert done.exit_code == 0, done.output
    return done.stdout


def test_the_table_says_what_its_columns_mean() -> None:
    lines = planned().splitlines()

    assert all(column in lines[0] for column in (*COLUMNS, *OUTLOOK_COLUMNS))
    assert {line.partition(":")[0] for line in LEGEND} <= set(OUTLOOK_COLUMNS)
    assert [line for line in lines if line in LEGEND] == list(LEGEND)


@pytest.mark.parametrize("words", [("--json",), ("--format", "json"), ("--format", "github")])
def test_programs_read_no_legend(words: tuple[str, ...]) -> None:
    assert json.loads(planned(*words))
