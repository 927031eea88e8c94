"""What a person sees: one line a cell, a live display on a terminal, nothing left behind after an error."""

from __future__ import annotations

import io

import pytest
from execution_helpers import cell
from rich.console import Console

from harness.contract.outcomes import OUTCOMES
from harness.execution.observer import RunReport
from harness.execution.progress import (
    COLOURS,
    LiveProgress,
    PlainProgress,
    choose_progress,
    closing_line,
    duration,
    finished_line,
    remaining,
)
from harness.result import CellResult, MergeCounts


def console(*, terminal: bool) -> Console:
    return Console(file=io.StringIO(), force_terminal=terminal, width=100, color_system=None, legacy_windows=False)


def written(target: Console) -> str:
    assert isinstance(target.file, io.StringIO)
    return target.file.getvalue()


def passed() -> CellResult:
    merge = MergeCounts(attempted=156, applied=156)
    return CellResult(cell=cell(), cell_id=cell().id, outcome="pass", merge=merge, timings={"cell": 8.21})


def failed() -> CellResult:
    one = cell(seed=1)
    reason = "TypeError: got [bold]x[/bold]\nmore"
    return CellResult(cell=one, cell_id=one.id, outcome="error", stage="reload-adapter", reason=reason)


def report(*results: CellResult, interrupted: bool = False) -> RunReport:
    return RunReport(
        planned=(cell(), cell(seed=1), cell(seed=2)),
        results=results,
        reused=frozenset(),
        environment_failures=(),
        seconds=185.0,
        interrupted=interrupted,
    )


def test_every_outcome_has_a_colour_and_only_pass_is_green() -> None:
    assert set(COLOURS) == set(OUTCOMES)
    assert [outcome for outcome, colour in COLOURS.items() if "green" in colour] == ["pass"]


def test_a_finished_cell_is_one_line() -> None:
    line = finished_line(passed(), done=3, planned=24, reused=False).plain
    assert line == f"[ 3/24] pass          {cell().id}  156/156 tensors, 8.2 s"

    line = finished_line(failed(), done=4, planned=24, reused=True).plain
    assert line == (f"[ 4/24] error         {cell(seed=1).id}  reused  reload-adapter: TypeError: got [bold]x[/bold]")
    times = {"started": "2026-11-25T10:00:00+00:00", "reused": "2026-11-28T10:00:00+00:00"}
    line = finished_line(passed().model_copy(update=times), done=5, planned=24, reused=True).plain
    assert line == f"[ 5/24] pass          {cell().id}  156/156 tensors, 8.2 s, reused, made 3 days ago"


@pytest.mark.parametrize(
    ("seconds", "text"),
    [(0.04, "0.0 s"), (8.24, "8.2 s"), (59.97, "1 min 00 s"), (185, "3 min 05 s"), (3720, "1 h 02 min")],
)
def test_durations(seconds: float, text: str) -> None:
    assert duration(seconds) == text


def test_the_time_that_is_left_follows_the_pace_so_far() -> None:
    assert remaining(30.0, 0, 10) is None
    assert remaining(30.0, 3, 10) == pytest.approx(70.0)
    assert remaining(30.0, 10, 10) == 0


def test_the_closing_line_counts_outcomes() -> None:
    assert closing_line(report(passed(), failed())) == "2 of 3 cells in 3 min 05 s: 1 pass, 1 error"
    assert closing_line(report(interrupted=True)) == "0 of 3 cells in 3 min 05 s: none (interrupted)"


def test_plain_lines_have_times_and_no_control_characters() -> None:
    target = console(terminal=False)
    times = iter([0.0, 0.0, 0.5, 2.5, 2.5, 10.75, 11.0])
    progress = PlainProgress(target, clock=lambda: next(times))
    progress.planned([cell()])
    progress.environment_started(cell().stack)
    progress.environment_ready(cell().stack, 2.0)
    progress.cell_started(cell())
    progress.cell_stage(cell(), "train")
    progress.cell_finished(passed(), reused=False)
    progress.run_ended(report(passed()))
    progress.closed()

    assert written(target).splitlines() == [
        "    0.0 s  1 cell",
        "    0.5 s  environment tf5.5.0-peft0.19.1-trl0.25.1: preparing",
        "    2.5 s  environment tf5.5.0-peft0.19.1-trl0.25.1: ready after 2.0 s",
        f"    2.5 s  started  {cell().id}",
        f"   10.8 s  [1/1] pass          {cell().id}  156/156 tensors, 8.2 s",
        "   11.0 s  1 of 3 cells in 3 min 05 s: 1 pass",
    ]


def test_the_live_display_shows_stages_seconds_and_what_is_left() -> None:
    target = console(terminal=True)
    now = [100.0]
    progress = LiveProgress(target, clock=lambda: now[0])
    progress.planned([cell(), cell(seed=1), cell(seed=2)])
    progress.environment_started(cell(peft="0.18.1").stack)
    progress.cell_started(cell())
    progress.cell_started(cell(seed=1))
    progress.cell_stage(cell(seed=1), "train")
    now[0] = 112.0
    progress.cell_finished(passed(), reused=False)
    shown = console(terminal=False)
    shown.print(progress._render())
    lines = [" ".join(line.split()) for line in written(shown).splitlines()]
    progress.closed()

    assert lines[0] == "12.0 s environment tf5.5.0-peft0.18.1-trl0.25.1"
    assert lines[1] == f"12.0 s train {cell(seed=1).id}"
    assert lines[2].endswith("1/3 cells about 24.0 s left")
    assert f"[1/3] pass          {cell().id}" in written(target)


def test_the_cursor_is_shown_again_after_an_error() -> None:
    target = console(terminal=True)
    progress = LiveProgress(target)
    progress.planned([cell()])
    assert "\x1b[?25l" in written(target)
    progress.closed()
    progress.closed()

    assert written(target).rindex("\x1b[?25h") > written(target).rindex("\x1b[?25l")


def test_a_terminal_gets_the_display_and_a_log_gets_lines() -> None:
    assert isinstance(choose_progress(console(terminal=True)), LiveProgress)
    assert isinstance(choose_progress(console(terminal=False)), PlainProgress)
