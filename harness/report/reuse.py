"""What has to be said of results that the run did not make but took over from an earlier one; pure."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from datetime import datetime

from harness.counting import counted
from harness.matrix.releases import age, utc
from harness.report.table import Row
from harness.result import CellResult

TITLE = "Reused results"
INTRODUCTION = (
    "These cells were not run: an earlier run of the same cell, packages, code and bands has kept what they came to. "
    "What was expected of them, and whether stacks agree, was judged now."
)
HEAD = ("cell", "made", "age when it was reused")


def age_seconds(result: CellResult) -> float | None:
    """Return how old a result was when it was taken over, in seconds.

    None for a cell that was run, and where a time is none.
    """
    span = _span(result)
    return None if span is None else max(0.0, (span[1] - span[0]).total_seconds())


def reused(rows: Iterable[Row]) -> list[Row]:
    """Return the rows whose results were taken over."""
    return [row for row in rows if row.result.reused is not None]


def note(result: CellResult) -> str | None:
    """Return ``reused, made 3 days before``; None for a cell that was run."""
    return None if result.reused is None else f"reused, made {_age(result)} before"


def line(result: CellResult) -> tuple[str, str]:
    """Return when a result that was taken over was made, and how old it was, as a table says it."""
    span = _span(result)
    return ("unknown" if span is None else f"{span[0]:%Y-%m-%d %H:%M UTC}", _age(result))


def sentence(rows: Sequence[Row]) -> str | None:
    """Return how many of the results were taken over, and how old they were; None where all were made.

    Example: ``212 of 221 results were reused from earlier runs, 2 hours to 3 days old.``
    """
    chosen = reused(rows)
    if not chosen:
        return None
    known = sorted((it.result for it in chosen if _span(it.result) is not None), key=lambda it: age_seconds(it) or 0.0)
    ages = list(dict.fromkeys((_age(known[0]), _age(known[-1])))) if known else ["of unknown age"]
    old = f"{' to '.join(ages)} old" if known else ages[0]
    verb = "was" if len(chosen) == 1 else "were"
    return f"{len(chosen)} of {counted(len(rows), 'result')} {verb} reused from earlier runs, {old}."


def _age(result: CellResult) -> str:
    span = _span(result)
    return "an unknown time" if span is None else age(*span)


def _span(result: CellResult) -> tuple[datetime, datetime] | None:
    """Return when a result was made and when it was taken over; None where either is no time."""
    try:
        return utc(result.started or ""), utc(result.reused or "")
    except ValueError:
        return None
