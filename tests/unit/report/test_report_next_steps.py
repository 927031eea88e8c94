"""What a user is told to do about a failure that nobody declared."""

from __future__ import annotations

import io
from pathlib import Path
from typing import Any

import pytest
from rich.console import Console

from harness.contract.outcomes import Outcome, Status
from harness.report.next_steps import DECLARE, READ, next_steps
from harness.report.table import Row
from harness.report.terminal import print_next_steps
from tests.unit.report.report_samples import cell, measured, sample_rows, stopped

ROOT = Path(__file__).resolve().parents[3]


@pytest.mark.parametrize(("outcome", "status"), [("error", "new"), ("fail", "regression")])
def test_a_failure_of_a_stack_is_looked_into_declared_or_reported(outcome: Outcome, status: Status) -> None:
    row = Row(result=stopped(cell("qwen3_moe"), outcome, "load", "x"), status=status, options="--config a.toml")

    steps = next_steps([row])

    assert steps[0] == ("look", f"{row.result.cell.reproduce} --config a.toml --keep --fresh")
    assert [word for word, _ in steps] == ["look", "", "report", "declare"]
    assert (ROOT / DECLARE).is_file()
    assert "## Report it" in (ROOT / READ).read_text()


@pytest.mark.parametrize("what", ["unsupported", "unresolvable"])
def test_what_a_stack_lacks_is_declared(what: Any) -> None:
    row = Row(result=stopped(cell("llama"), what, "build", "LlamaForCausalLM has no routed experts"), status=what)

    assert [word for word, _ in next_steps([row])] == ["declare"]


def test_what_no_longer_fails_is_undeclared() -> None:
    row = Row(result=measured(cell("qwen3_moe")), status="unexpected-pass", expectation_reason="x")

    assert [word for word, _ in next_steps([row])] == ["undeclare"]


@pytest.mark.parametrize(("outcome", "status"), [("pass", "ok"), ("error", "known-failure"), ("environment",) * 2])
def test_what_is_as_declared_or_the_machine_s_fault_asks_for_nothing_here(outcome: Outcome, status: Status) -> None:
    assert next_steps([Row(result=stopped(cell("qwen3_moe"), outcome, "load", "x"), status=status)]) == []


def test_it_is_said_once_for_all_cells() -> None:
    screen = Console(file=io.StringIO(), width=60, force_terminal=False)
    print_next_steps(screen, sample_rows())
    lines = str(screen.file.getvalue()).splitlines()  # type: ignore[attr-defined]

    assert [line.strip().split(" ")[0] for line in lines] == [
        "what", "look", "runs", "report", "declare", "undeclare", "",
    ]  # fmt: skip
