"""How a row looks, in one symbol, one word and one tone; and the overview of stacks and families; pure.

The symbol and the word carry the meaning. The tone only repeats it, for eyes that see it. ``✓`` and the tone ``pass``
are kept for an expected pass: a cell that did not run, is blind, skipped or unsupported never gets them.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from harness.contract.cell_fields import DEFAULTS
from harness.contract.outcomes import OUTCOMES
from harness.report.table import STANDINGS, Row, Standing, ordered, stack_title

Tone = Literal["pass", "quiet", "known", "bad", "surprise", "flaky", "unknown"]


@dataclass(frozen=True, kw_only=True)
class Look:
    """A symbol, a word or two, and a tone (a name that CSS and the terminal turn into a colour)."""

    symbol: str
    word: str
    tone: Tone

    def __str__(self) -> str:
        return f"{self.symbol} {self.word}"


_OK = {
    "pass": Look(symbol="✓", word="pass", tone="pass"),
    "unsupported": Look(symbol="∅", word="unsupported", tone="quiet"),
    "skipped": Look(symbol="»", word="skipped", tone="quiet"),
}
_SAME_FOR_EVERY_OUTCOME: dict[Standing, Look] = {
    "unexpected-pass": Look(symbol="!", word="unexpected pass", tone="surprise"),
    "flaky": Look(symbol="≈", word="flaky", tone="flaky"),
    "not-run": Look(symbol="?", word="not run", tone="unknown"),
    "fault-noticed": Look(symbol="◎", word="fault noticed", tone="known"),
    "fault-missed": Look(symbol="✗", word="FAULT NOT NOTICED", tone="bad"),
    "planted": Look(symbol="✗", word="fault unsettled", tone="bad"),
    "unresolvable": Look(symbol="∦", word="unresolvable", tone="surprise"),
    "unsupported": Look(symbol="∅", word="unsupported, undeclared", tone="surprise"),
    "environment": Look(symbol="⚙", word="environment", tone="unknown"),
}
LEGEND: tuple[tuple[str, str], ...] = (
    ("✓", "pass: merged, reloaded and compared, and the controls were caught"),
    ("∅", "unsupported: the stack has no such family or feature, in the library's own words"),
    ("»", "skipped: needs something this machine has not"),
    ("△", "known: fails as declared, with a reason"),
    (
        "✗",
        "a failure nobody declared, blind cells and missed faults included: a regression if it passed before, or new",
    ),
    ("∦", "unresolvable: existing versions contradict each other, which nobody declared"),
    (
        "⚙",
        "environment: the machine's fault (interpreter, network, disk, GPU); it says nothing of the stack",
    ),
    ("◎", "fault noticed: planted on purpose and rejected, as it must be; never a pass"),
    ("!", "unexpected pass: declared to fail and does not"),
    ("≈", "flaky: not the same every time"),
    ("?", "not run: says nothing"),
)
TITLES: dict[Standing, str] = {
    "planted": "Planted faults that stay unsettled: not judged, or not alone",
    "regression": "Regressions",
    "new": "New failures",
    "unresolvable": "Unresolvable",
    "unsupported": "Unsupported and undeclared",
    "environment": "Environment: the machine's fault",
    "unexpected-pass": "Unexpected passes",
    "not-run": "Not run",
    "fault-noticed": "Planted faults that were noticed",
    "fault-missed": "Planted faults that were NOT noticed",
    "flaky": "Flaky",
    "known-failure": "Known failures",
    "ok": "Ok",
}


def look(row: Row) -> Look:
    """Return how a row looks."""
    outcome = row.result.outcome
    match row.standing:
        case "ok":
            return _OK[outcome]
        case "known-failure":
            return Look(symbol="△", word=f"known {outcome}", tone="known")
        case "regression":
            return Look(symbol="✗", word="regression" if outcome == "pass" else f"regression: {outcome}", tone="bad")
        case "new":
            return Look(symbol="✗", word="failure" if outcome == "pass" else outcome, tone="bad")
        case standing:
            return _SAME_FOR_EVERY_OUTCOME[standing]


def outcome_text(row: Row) -> str:
    """Return the last column's text, as ``△ known error in reload-adapter``.

    It is the look and, where a stage decided it, that stage.
    """
    stage = row.result.stage
    where = f" in {stage}" if stage is not None and not row.passed and row.status is not None else ""
    return f"{look(row)}{where}"


def severity(row: Row) -> tuple[int, int]:
    """Return a key that sorts the worst row first: by standing, then by outcome."""
    return STANDINGS.index(row.standing), OUTCOMES.index(row.result.outcome)


@dataclass(frozen=True, kw_only=True)
class OverviewCell:
    """The worst of the cells of one stack and family, and how many there are of each look."""

    worst: Look
    tally: tuple[tuple[str, int], ...]
    passed: int
    cells: int

    @property
    def share(self) -> str:
        """How many pass, where some do and some do not: ``21 of 24 pass``."""
        return f"{self.passed} of {self.cells} pass" if 0 < self.passed < self.cells else ""

    def __str__(self) -> str:
        """Return the worst look and, beside it, how many pass all the same."""
        return f"{self.worst} ({self.share})" if self.share else str(self.worst)


@dataclass(frozen=True, kw_only=True)
class Overview:
    """Stacks and engines by families.

    ``lines`` holds (stack, its title, engine, a cell per family or None where nothing was planned).
    """

    families: tuple[str, ...]
    lines: tuple[tuple[str, str, str, tuple[OverviewCell | None, ...]], ...]


def _overview_cell(rows: Sequence[Row]) -> OverviewCell | None:
    if not rows:
        return None
    looks = [str(look(row)) for row in sorted(rows, key=severity)]
    tally = tuple((text, looks.count(text)) for text in dict.fromkeys(looks))
    passed = sum(row.passed for row in rows)
    return OverviewCell(worst=look(min(rows, key=severity)), tally=tally, passed=passed, cells=len(rows))


def overview(rows: Iterable[Row]) -> Overview:
    """Return the compatibility overview.

    The newest stack comes first, the default engine before others, families in alphabetical order.
    """
    rows = ordered(rows)
    families = tuple(sorted({row.result.cell.family for row in rows}))
    stacks = {row.result.cell.stack.id: stack_title(row) for row in rows}
    engines = sorted({row.result.cell.engine for row in rows}, key=lambda name: (name != DEFAULTS["engine"], name))
    grouped: dict[tuple[str, str, str], list[Row]] = {}
    for row in rows:
        cell = row.result.cell
        grouped.setdefault((cell.stack.id, cell.engine, cell.family), []).append(row)
    return Overview(
        families=families,
        lines=tuple(
            (stack, title, engine, tuple(_overview_cell(grouped.get((stack, engine, name), [])) for name in families))
            for stack, title in stacks.items()
            for engine in engines
            if any((stack, engine, name) in grouped for name in families)
        ),
    )
