"""What a person sees while cells run: a live display on a terminal, plain lines elsewhere.

Both are observers of the scheduler. Both write finished cells as one line each, so that a log of CI and a scrolled-back
terminal read alike. Outcomes are coloured by kind. Whether one was expected is for the report to say, not for these.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence

from rich.console import Console, Group, RenderableType
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.table import Table
from rich.text import Text

from harness.contract.outcomes import Outcome
from harness.contract.stages import StageName
from harness.counting import counted
from harness.execution.observer import Observer, RunReport
from harness.matrix.cell import Cell, Stack
from harness.matrix.releases import age, utc
from harness.result import CellResult

COLOURS: dict[Outcome, str] = {
    "crash": "bold red", "oom": "bold red", "timeout": "bold red", "error": "red", "noop": "red", "fail": "red",
    "blind": "yellow", "environment": "yellow", "unresolvable": "yellow", "unsupported": "dim", "skipped": "dim",
    "pass": "green",
}  # fmt: skip
_REASON_WIDTH = 100
_WIDEST_OUTCOME = max(len(outcome) for outcome in COLOURS)


def choose_progress(console: Console) -> Observer:
    """Return the live display where ``console`` is a terminal that can move its cursor, else plain lines."""
    return LiveProgress(console) if console.is_terminal and not console.is_dumb_terminal else PlainProgress(console)


def finished_line(result: CellResult, *, done: int, planned: int, reused: bool) -> Text:
    """Return the line of a finished cell.

    It holds count, outcome, tensors applied of attempted, seconds, id, stage and reason.
    """
    line = Text(f"[{done:>{len(str(planned))}}/{planned}] ", style="dim")
    line.append(f"{result.outcome:<{_WIDEST_OUTCOME}}", style=COLOURS[result.outcome])
    line.append(f"  {result.cell_id}", style="not dim")
    facts = []
    if result.merge is not None:
        facts.append(f"{result.merge.applied}/{counted(result.merge.attempted, 'tensor')}")
    if "cell" in result.timings:
        facts.append(duration(result.timings["cell"]))
    if reused:
        facts.append(_age_of(result))
    line.append(f"  {', '.join(facts)}" if facts else "")
    if result.outcome != "pass":
        line.append(f"  {result.stage}: {first_line(result.reason)}", style="not dim")
    return line


def _age_of(result: CellResult) -> str:
    """Return how old a result is that was taken over."""
    try:
        return f"reused, made {age(utc(result.started or ''), utc(result.reused or ''))} ago"
    except ValueError:
        return "reused"


def first_line(reason: str | None) -> str:
    """Return the beginning of a reason that fits beside a cell's id."""
    text = (reason or "no reason given").strip().splitlines()[0]
    return text if len(text) <= _REASON_WIDTH else f"{text[: _REASON_WIDTH - 1]}…"


def duration(seconds: float) -> str:
    """Return seconds as a person reads them: ``8.2 s``, ``3 min 05 s``, ``1 h 02 min``."""
    if seconds < 59.95:  # noqa: PLR2004  # what would be printed as 60.0 s is a minute
        return f"{seconds:.1f} s"
    minutes, rest = divmod(round(seconds), 60)
    return f"{minutes} min {rest:02} s" if minutes < 60 else f"{minutes // 60} h {minutes % 60:02} min"  # noqa: PLR2004


def remaining(elapsed: float, done: int, planned: int) -> float | None:
    """Return the seconds that the rest of a run will take at the pace so far; None before there is one.

    Args:
        elapsed: seconds since the first cell started.
        done: cells that have run since then (those taken over from an earlier run do not count).
        planned: cells that were to run.
    """
    return None if done == 0 else elapsed / done * (planned - done)


def closing_line(report: RunReport) -> str:
    """Return a run's last line: how many cells, of which outcomes, in what time."""
    counts = {outcome: sum(result.outcome == outcome for result in report.results) for outcome in reversed(COLOURS)}
    summary = ", ".join(f"{count} {outcome}" for outcome, count in counts.items() if count)
    text = (
        f"{len(report.results)} of {counted(len(report.planned), 'cell')} "
        f"in {duration(report.seconds)}: {summary or 'none'}"
    )
    return f"{text} (interrupted)" if report.interrupted else text


class PlainProgress:
    """One line an event, each with the time since the start: for logs."""

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._began = clock()
        self._planned = 0
        self._done = 0

    def planned(self, cells: Sequence[Cell]) -> None:
        """Remember how many there are to be."""
        self._planned = len(cells)
        self._line(Text(counted(len(cells), "cell")))

    def environment_started(self, stack: Stack) -> None:
        """Show that an environment is being made."""
        self._line(Text(f"environment {stack.id}: preparing"))

    def environment_ready(self, stack: Stack, seconds: float) -> None:
        """Show how long it took."""
        self._line(Text(f"environment {stack.id}: ready after {duration(seconds)}"))

    def environment_failed(self, stack: Stack, reason: str) -> None:
        """Show why it cannot be made."""
        self._line(Text(f"environment {stack.id}: failed: {reason}"))

    def cell_started(self, cell: Cell) -> None:
        """Show that a cell has been started."""
        self._line(Text(f"started  {cell.id}"))

    def cell_stage(self, cell: Cell, stage: StageName) -> None:
        """Nothing: stages would be most of the log, and the result has them all."""

    def cell_finished(self, result: CellResult, *, reused: bool) -> None:
        """Write the line of a finished cell."""
        self._done += 1
        self._line(finished_line(result, done=self._done, planned=self._planned, reused=reused))

    def note(self, text: str) -> None:
        """Write it."""
        self._line(Text(text))

    def run_ended(self, report: RunReport) -> None:
        """Write the closing line."""
        self._line(Text(closing_line(report)))

    def closed(self) -> None:
        """Nothing to give back."""

    def _line(self, text: Text) -> None:
        stamp = Text(f"{self._clock() - self._began:7.1f} s  ", style="dim")
        self._console.print(stamp + text, soft_wrap=True, highlight=False)


class LiveProgress:
    """A display that stays at the bottom.

    It has a bar, what environments are being made, and a line for each running cell.
    """

    def __init__(self, console: Console, clock: Callable[[], float] = time.monotonic) -> None:
        self._console = console
        self._clock = clock
        self._planned = 0
        self._done = 0
        self._reused = 0
        self._first_start: float | None = None
        self._environments: dict[str, float] = {}
        self._running: dict[str, tuple[float, StageName | None]] = {}
        # Last, because it renders at once.
        self._live = Live(console=console, get_renderable=self._render, refresh_per_second=4, transient=True)

    def planned(self, cells: Sequence[Cell]) -> None:
        """Remember how many there are to be."""
        self._planned = len(cells)
        self._live.start()

    def environment_started(self, stack: Stack) -> None:
        """Show that an environment is being made."""
        self._environments[stack.id] = self._clock()

    def environment_ready(self, stack: Stack, seconds: float) -> None:
        """Show how long it took."""
        self._environments.pop(stack.id, None)
        self._print(Text(f"environment {stack.id} ready after {duration(seconds)}", style="dim"))

    def environment_failed(self, stack: Stack, reason: str) -> None:
        """Show why it cannot be made."""
        self._environments.pop(stack.id, None)
        self._print(Text(f"environment {stack.id} failed: {reason}", style="yellow"))

    def cell_started(self, cell: Cell) -> None:
        """Show that a cell has been started."""
        now = self._clock()
        self._first_start = now if self._first_start is None else self._first_start
        self._running[cell.id] = (now, None)

    def cell_stage(self, cell: Cell, stage: StageName) -> None:
        """Show the stage of a running cell."""
        if cell.id in self._running:
            self._running[cell.id] = (self._running[cell.id][0], stage)

    def cell_finished(self, result: CellResult, *, reused: bool) -> None:
        """Write the line of a finished cell."""
        self._done += 1
        self._reused += reused
        self._running.pop(result.cell_id, None)
        self._print(finished_line(result, done=self._done, planned=self._planned, reused=reused))

    def note(self, text: str) -> None:
        """Write it above the display."""
        self._print(Text(text, style="dim"))

    def run_ended(self, report: RunReport) -> None:
        """Write the closing line."""
        self._live.stop()
        self._print(Text(closing_line(report)))

    def closed(self) -> None:
        """Give the terminal back, also after an error."""
        self._live.stop()

    def _print(self, text: Text) -> None:
        self._console.print(text, soft_wrap=True, highlight=False)

    def _render(self) -> RenderableType:
        """Called by the display's own thread; it reads copies, the scheduler's thread writes."""
        now = self._clock()
        rows = Table.grid(padding=(0, 2))
        for stack_id, since in list(self._environments.items()):
            rows.add_row(duration(now - since), Text("environment", style="cyan"), Text(stack_id))
        for cell_id, (since, stage) in list(self._running.items()):
            rows.add_row(duration(now - since), Text(stage or "starting", style="cyan"), Text(cell_id))
        left = None
        if self._first_start is not None:
            ran, to_run = self._done - self._reused, self._planned - self._reused
            left = remaining(now - self._first_start, ran, to_run)
        bar = Table.grid(padding=(0, 2))
        bar.add_row(
            ProgressBar(total=max(1, self._planned), completed=self._done, width=40),
            Text(f"{self._done}/{counted(self._planned, 'cell')}"),
            Text("" if left is None else f"about {duration(left)} left", style="dim"),
        )
        return Group(rows, bar)
