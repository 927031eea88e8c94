"""What an interrupted command says: what is kept, and which command does the rest."""

from __future__ import annotations

import importlib
import sys
from collections.abc import Sequence

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.counting import counted
from harness.execution.observer import RunReport
from harness.execution.scheduler import RunInterruptedError
from harness.matrix.cell import Cell, Stack
from harness.result import CellResult

STACK = Stack(transformers="5.5.0", peft="0.19.1", trl="0.25.1", pins={"torch": "2.13.0"})


def interrupted(cells: Sequence[Cell], done: int) -> RunInterruptedError:
    results = [
        CellResult(cell=cell, cell_id=cell.id, outcome="skipped", reason="a sample", seed=cell.seed) for cell in cells
    ]
    return RunInterruptedError(
        RunReport(
            planned=tuple(cells),
            results=tuple(results[:done]),
            reused=frozenset(),
            environment_failures=(),
            seconds=1.0,
            interrupted=True,
        )
    )


@pytest.mark.parametrize(
    ("planned", "done", "sentence"),
    [
        (1, 0, "Interrupted: the cell has no result."),
        (7, 0, "Interrupted: none of 7 cells has a result."),
        (7, 1, "Interrupted: 1 of 7 cells has a result, which is kept."),
        (7, 2, "Interrupted: 2 of 7 cells have results, which are kept."),
    ],
)
def test_the_sentence_is_true_of_none_one_and_several(planned: int, done: int, sentence: str) -> None:
    stack = Stack(transformers="5.5.0", peft="0.19.1", trl="0.25.1")
    cells = [Cell(family="qwen3_moe", recipe="lora", stack=stack, seed=seed) for seed in range(planned)]

    assert interrupted(cells, done).message == sentence


@pytest.mark.parametrize(
    ("command", "advice"),
    [
        (("run", "--model", "qwen3_moe", "--peft", "0.19.1"), "The same command again runs the cell"),
        (("matrix", "--profile", "smoke"), "The same command again does the rest"),
        (("matrix", "--profile", "smoke", "--fresh", "--keep"), "The same command without --fresh and --keep does"),
        (("matrix", "--profile", "smoke", "--python", sys.executable), "The same command again runs every cell"),
    ],
)
def test_the_advice_is_of_the_command_that_was_run(
    monkeypatch: pytest.MonkeyPatch, tmp_path_factory: pytest.TempPathFactory, command: tuple[str, ...], advice: str
) -> None:
    def run_cells(cells: Sequence[Cell], *_: object, **_options: object) -> None:
        raise interrupted(cells, 0)

    monkeypatch.delenv("MOE_LORA_HARNESS_RESULTS_SIZE", raising=False)
    execute = importlib.import_module("harness.cli.execute")
    monkeypatch.setattr(execute, "run_cells", run_cells)
    monkeypatch.setattr(execute, "check_versions_exist", lambda _stacks: None)
    monkeypatch.setattr(execute, "yanked_pins", lambda _stacks: ())
    monkeypatch.setattr(importlib.import_module("harness.cli.matrix"), "installed_stack", lambda _python: STACK)
    out = str(tmp_path_factory.mktemp("out"))
    error = CliRunner().invoke(app, [*command, "--device", "cpu", "--out", out]).exception

    assert isinstance(error, RunInterruptedError)
    assert error.remedy is not None
    assert error.remedy.startswith(advice)


def test_counts_agree_with_their_nouns() -> None:
    assert [counted(count, "cell") for count in (0, 1, 2)] == ["0 cells", "1 cell", "2 cells"]
    assert [counted(count, "pass", "passes") for count in (1, 2)] == ["1 pass", "2 passes"]
