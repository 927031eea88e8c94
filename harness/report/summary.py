"""One sentence that a person reads in ten seconds, and the counts behind it; pure.

Green is reserved for all cells ok with at least one that passed: a matrix in which everything was skipped proves
nothing. Amber means that nothing is unexpected though not all is ok. Red means that somebody has to look.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.contract.outcomes import OUTCOMES, Outcome
from harness.counting import counted
from harness.report.table import STANDINGS, Row, Standing

Colour = Literal["green", "amber", "red"]

_NOUNS: dict[Standing, tuple[str, str]] = {
    "ok": ("ok", "ok"),
    "planted": ("planted fault unsettled", "planted faults unsettled"),
    "regression": ("regression", "regressions"),
    "new": ("new failure", "new failures"),
    "unresolvable": ("unresolvable", "unresolvable"),
    "unsupported": ("unsupported and undeclared", "unsupported and undeclared"),
    "environment": ("not run for want of an environment", "not run for want of an environment"),
    "unexpected-pass": ("unexpected pass", "unexpected passes"),
    "not-run": ("not run", "not run"),
    "fault-noticed": ("planted fault noticed", "planted faults noticed"),
    "fault-missed": ("planted fault NOT NOTICED", "planted faults NOT NOTICED"),
    "flaky": ("flaky", "flaky"),
    "known-failure": ("known failure", "known failures"),
}

_HEADLINES: dict[Colour, str] = {"green": "All ok", "amber": "Nothing unexpected", "red": "Needs a look"}


@dataclass(frozen=True, kw_only=True)
class Summary:
    """Counts of a report.

    Attributes:
        cells: rows in all.
        standings: rows per standing; only those that occur, worst first.
        outcomes: rows per outcome, of the cells that ran; only those that occur, worst first.
        colour: green, amber or red.
        headline: the colour in words, for those who do not see it; of a single cell that ended as declared, that.
        sentence: all of it in words.
    """

    cells: int
    standings: dict[Standing, int]
    outcomes: dict[Outcome, int]
    colour: Colour
    headline: str
    sentence: str


def as_declared(rows: Sequence[Row]) -> str | None:
    """Return what a single cell that did not pass ended in as declared, in a few words; None for any other rows."""
    if len(rows) != 1 or rows[0].passed or not rows[0].as_expected or not rows[0].expectation_reason:
        return None
    outcome = rows[0].result.outcome
    words = {"known-failure": "A known failure", "flaky": "A failure that comes and goes"}
    return f"{words.get(rows[0].standing, outcome.capitalize())}, as declared"


def count_of(standing: Standing, count: int) -> str:
    """Return ``1 regression``, ``2 known failures``, ``3 not run``."""
    return counted(count, *_NOUNS[standing])


def _count_outcomes(rows: Iterable[Row]) -> dict[Outcome, int]:
    counts = Counter(row.result.outcome for row in rows)
    return {outcome: counts[outcome] for outcome in OUTCOMES if counts[outcome]}


def _listed(outcomes: dict[Outcome, int]) -> str:
    return ", ".join(f"{count} {outcome}" for outcome, count in sorted(outcomes.items(), key=lambda item: -item[1]))


def _troubles(rows: list[Row], standings: dict[Standing, int]) -> str:
    """Return the part of the sentence that counts what is not ok, worst first."""
    parts = []
    for standing, count in standings.items():
        if standing == "ok":
            continue
        which = _listed(_count_outcomes(row for row in rows if row.standing == standing))
        parts.append(count_of(standing, count) + (f" ({which})" if standing in {"regression", "new"} else ""))
    return ", ".join(parts)


def summarise(rows: Iterable[Row]) -> Summary:
    """Count the rows and say the result in one sentence.

    Example: ``54 of 56 cells ok (50 pass, 4 unsupported); 2 known failures``.
    """
    rows = list(rows)
    counts = Counter(row.standing for row in rows)
    standings = {standing: counts[standing] for standing in STANDINGS if counts[standing]}
    ok = _count_outcomes(row for row in rows if row.standing == "ok")
    n_ok = sum(ok.values())
    colour: Colour
    if not rows:
        colour, sentence = "red", "No cells: nothing was run."
    elif n_ok == len(rows):
        colour = "green" if "pass" in ok else "amber"
        which = f"All {n_ok} cells" if n_ok > 1 else "The one cell"
        sentence = f"{which} ok: {_listed(ok)}{'' if 'pass' in ok else '; nothing passed'}."
    else:
        expected = all(row.as_expected for row in rows)
        colour = "amber" if expected else "red"
        end = "; nothing unexpected" if expected else ""
        if all(row.as_expected or row.standing == "fault-noticed" for row in rows) and not expected:
            end = ", as it must be; such a cell never passes"
        of_them = f" ({_listed(ok)})" if ok else ""
        sentence = f"{n_ok} of {counted(len(rows), 'cell')} ok{of_them}; {_troubles(rows, standings)}{end}."
    return Summary(
        cells=len(rows),
        standings=standings,
        outcomes=_count_outcomes(row for row in rows if row.standing != "not-run"),
        colour=colour,
        headline=as_declared(rows) or _HEADLINES[colour],
        sentence=sentence,
    )
