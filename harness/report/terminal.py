"""The table at the end of a run, and what is said about a cell that failed; writes to a rich console.

Everything is built from ``Text``, never from rich's markup: a reason that contains ``[red]`` is three words, not a
colour. Where the console is not a terminal the table is as wide as it needs to be, so that a CI log shows whole
numbers.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

from rich import box
from rich.console import Console
from rich.measure import Measurement
from rich.table import Table
from rich.text import Text

from harness.counting import counted
from harness.report import quantized, reuse
from harness.report.details import failed_checks, reason, told_by_checks, verdict
from harness.report.figures import MISSING
from harness.report.legend import legend
from harness.report.look import Tone, look, outcome_text
from harness.report.next_steps import next_steps
from harness.report.summary import as_declared, summarise
from harness.report.table import COLUMNS, Row, ordered
from harness.report.text import clean, fold, one_line

_STYLES: dict[Tone, str] = {
    "pass": "green",
    "quiet": "dim",
    "known": "yellow",
    "bad": "bold red",
    "surprise": "bold magenta",
    "flaky": "cyan",
    "unknown": "bold yellow",
}
_SUMMARY_STYLES = {"green": "bold green", "amber": "bold yellow", "red": "bold red"}
_UNBOUNDED = 10_000
_OUTCOME_WIDTH = 15


def _broken(text: str) -> str:
    """Return a cell's text with what follows its first word (options, tensors without effect) on a line of its own."""
    return text.replace(" ", "\n", 1)


def _table(rows: Iterable[Row]) -> Table:
    table = Table(box=box.SIMPLE_HEAD, header_style="bold", pad_edge=False)
    for column in COLUMNS:
        title = Text(column.title.replace(" vs ", " vs\n", 1).replace("merged t", "merged\nt"))
        # Versions and numbers are never broken; a recipe's options may be.
        table.add_column(
            title, justify="right" if column.numeric else "left", no_wrap=column.key != "recipe", overflow="fold"
        )
    table.add_column(Text("outcome"), overflow="fold", min_width=_OUTCOME_WIDTH)
    for row in rows:
        style = _STYLES[look(row).tone]
        table.add_row(*(Text(_broken(column.text(row))) for column in COLUMNS), Text(outcome_text(row), style=style))
    return table


def _print_narrow(console: Console, rows: Iterable[Row]) -> None:
    """Print two lines per cell, for a terminal that has no room for the columns."""
    for row in rows:
        head = Text(outcome_text(row), style=_STYLES[look(row).tone])
        console.print(head.append(f"  {row.result.cell_id}", style="default"), soft_wrap=True)
        measured = [(column.title, column.text(row)) for column in COLUMNS if column.numeric]
        parts = [f"{title} {text}" for title, text in measured if text != MISSING]
        if parts:
            console.print(Text(f"    {' · '.join(parts)}", style="dim"))


def print_table(console: Console, rows: Iterable[Row]) -> None:
    """Print the table and the summary sentence; of a single cell that ended as declared, why it was declared.

    Raises:
        ValueError: when two rows are of the same cell.
    """
    rows = ordered(rows)
    summary = summarise(rows)
    table = _table(rows)
    room = Measurement.get(console, console.options.update(width=_UNBOUNDED), table)
    if not console.is_terminal:
        table.width = room.maximum
    if console.is_terminal and console.width < room.minimum:
        _print_narrow(console, rows)
    else:
        console.print(table, crop=False)
    for line in legend(rows):
        console.print(Text(line, style="dim"), soft_wrap=not console.is_terminal)
    if quantized.quantized(rows):
        console.print(Text(quantized.FOOTNOTE, style="dim"), soft_wrap=not console.is_terminal)
    style = _SUMMARY_STYLES[summary.colour]
    if (declared := as_declared(rows)) is not None:
        # Of a single cell its declaration says more than any count of cells.
        row = rows[0]
        where = f"{row.result.outcome} in {row.result.stage}: " if row.result.stage else ""
        head = Text(declared, style=style).append(f": {where}{one_line(row.expectation_reason or '', 2000)}", "default")
        console.print(head, soft_wrap=True)
        _print_link(console, row.expectation_link)
    else:
        console.print(Text(f"{summary.headline}. {summary.sentence}", style=style), soft_wrap=True)
    if (said := reuse.sentence(rows)) is not None:
        console.print(Text(f"{said} --fresh runs them anew.", style="dim"), soft_wrap=True)


def print_declared(console: Console, rows: Iterable[Row]) -> None:
    """Print why cells fail that were declared to: each declaration once, with its link and the number of its cells.

    Of a single cell the table's sentence has said it.
    """
    if as_declared(rows := list(rows)) is not None:
        return
    declared: dict[tuple[str, str | None], list[Row]] = {}
    for row in ordered(rows):
        if row.standing in {"known-failure", "flaky"} and row.expectation_reason:
            declared.setdefault((row.expectation_reason, row.expectation_link), []).append(row)
    for (words, link), found in declared.items():
        head = Text(outcome_text(found[0]), style=_STYLES[look(found[0]).tone])
        cells = f" ({counted(len(found), 'cell')})" if len(found) > 1 else ""
        head.append(f"{cells}, as declared: {one_line(words, 2000)}", style="default")
        console.print(head, soft_wrap=True)
        _print_link(console, link)


def _print_link(console: Console, link: str | None) -> None:
    if link:
        console.print(Text(f"  {one_line(link, 2000)}"), soft_wrap=True)


def print_failure(console: Console, row: Row, log_tail: str, log_path: Path | str | None) -> None:
    """Print why a cell is not a pass: phase, checks, reason, the end of its log, the log's path, how to reproduce it.

    What the checks say already is not said again.

    Args:
        console: where to print.
        row: the cell.
        log_tail: the last lines of the cell's log, up to the end of its phase; folded here when it is long.
        log_path: where the log lies, as the user can open it; None when there is none.
    """
    result = row.result

    def say(label: str, text: str, style: str = "") -> None:
        # One logical line per line of text, never wrapped: a path or a command must survive copying.
        console.print(Text(f"  {label:<10}", style="bold").append(Text(text, style=style)), soft_wrap=True)

    def block(text: str) -> None:
        console.print(Text("\n".join(f"    │ {line}" for line in text.split("\n")), style="dim"), soft_wrap=True)

    shown = look(row)
    console.print(Text(f"{shown}  {result.cell_id}", style=_STYLES[shown.tone]), soft_wrap=True)
    say("phase", result.stage or MISSING)
    if sentence := verdict(row):
        say("verdict", sentence)
    for check in failed_checks(row):
        say("check", check)
    if not told_by_checks(row):
        words = (reason(row) or "none given").split("\n")
        say("reason", words[0])
        if words[1:]:
            block("\n".join(words[1:]))
    if row.expectation_reason:
        say("declared", clean(" ".join(filter(None, (row.expectation_reason, row.expectation_link)))))
    if log_tail.strip() and not told_by_checks(row) and row.standing != "unsupported":  # its sentence is all there is
        say("log", f"up to the end of {result.stage}" if result.stage else "its last lines")
        block(fold(log_tail, max_lines=40))
    if log_path is not None:
        say("log at", clean(str(log_path)))
    say("reproduce", row.reproduce)
    console.print()


def print_next_steps(console: Console, rows: Iterable[Row]) -> None:
    """Print once, below all failures, what to do about them."""
    steps = next_steps(rows)
    if steps:
        console.print(Text("what to do next", style="bold"))
    for word, sentence in steps:
        console.print(
            Text(f"  {word:<10}", style="bold").append(Text(clean(sentence), style="default")), soft_wrap=True
        )
    if steps:
        console.print()
