"""The page that a run of mutants writes: the score, what noticed, and why what was not noticed could not be seen."""

from __future__ import annotations

import json
import tomllib
from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path

from make_mutants import Mutant

from harness.report.pipe_table import pipe_table

EQUIVALENT = Path(__file__).parent / "equivalent.toml"


@dataclass(frozen=True, kw_only=True)
class Tried:
    """A mutant and what became of its cells.

    Attributes:
        group: the code that it is of.
        mutant: what was changed.
        cells: those it was tried in, in order. Only the last can have noticed it.
        outcome: the last cell's: one of a result's outcomes, or ``timeout`` or ``died``.
        noticed_by: the first check that failed there, or the stage that ended otherwise; None where all passed.
        by_tests: whether the engine's own tests notice what no cell has; None where they were not asked.
    """

    group: str
    mutant: Mutant
    cells: tuple[str, ...]
    outcome: str
    noticed_by: str | None
    by_tests: bool | None = None

    @property
    def by_cell(self) -> bool:
        """Whether a cell did not pass."""
        return self.outcome != "pass"

    @property
    def noticed(self) -> bool:
        """Whether a cell did not pass, or a test of the engine."""
        return self.by_cell or bool(self.by_tests)


@dataclass(frozen=True, kw_only=True)
class Score:
    """What a run comes to.

    Attributes:
        tried: every mutant.
        known: mutant → why nobody could see it.
        facts: what the page says of the run, by title.
    """

    tried: Sequence[Tried]
    known: Mapping[str, str]
    facts: Mapping[str, str] = field(default_factory=dict)

    @property
    def share(self) -> float:
        """The share of the mutants that are not equivalent which was noticed."""
        return self.noticed / self.counted if self.counted else 0.0

    @property
    def noticed(self) -> int:
        """How many were noticed."""
        return sum(one.noticed for one in self.tried)

    @property
    def counted(self) -> int:
        """How many are not equivalent. One that was noticed is not, whatever the list says."""
        return sum(one.noticed or one.mutant.name not in self.known for one in self.tried)

    @property
    def wrongly_known(self) -> list[str]:
        """Mutants that the list says nobody could see, and which were noticed."""
        return [one.mutant.name for one in self.tried if one.noticed and one.mutant.name in self.known]


def write_run(file: Path, tried: Sequence[Tried], facts: Mapping[str, str]) -> None:
    """Write a run's record: reasons are written after it, and the page anew with them.

    Changed sources are kept of what the engine's tests may be asked of.
    """
    entries = [asdict(one) for one in tried]
    for entry in entries:
        if entry["outcome"] != "pass" or not entry["mutant"]["module"].startswith("harness."):
            entry["mutant"]["source"] = ""
    file.write_text(json.dumps({"facts": dict(facts), "tried": entries}, indent=1), encoding="utf-8")


def read_run(file: Path) -> tuple[list[Tried], dict[str, str]]:
    """Return what ``write_run`` wrote: the mutants and the facts."""
    record = json.loads(file.read_text(encoding="utf-8"))
    tried = [
        Tried(**{**entry, "mutant": Mutant(**entry["mutant"]), "cells": tuple(entry["cells"])})
        for entry in record["tried"]
    ]
    return tried, record["facts"]


def equivalent() -> dict[str, str]:
    """Return mutant → why nobody could see it, by the name in a table."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("equivalent", [])
    return {entry["mutant"]: entry["why"] for entry in entries}


def readings() -> dict[str, str]:
    """Return mutant → what it would do, of those that nothing notices though somebody could."""
    entries = tomllib.loads(EQUIVALENT.read_text(encoding="utf-8")).get("blind", [])
    return {entry["mutant"]: f"**a blind spot**: {entry['reading']}" for entry in entries}


def page(score: Score) -> str:
    """Return the page."""
    lines, read = [], readings()
    for group in dict.fromkeys(one.group for one in score.tried):
        part = Score(tried=[one for one in score.tried if one.group == group], known=score.known)
        by_cell = sum(one.by_cell for one in part.tried)
        alike = len(part.tried) - part.counted
        row = (len(part.tried), by_cell, part.noticed - by_cell, alike, part.counted - part.noticed)
        lines.append((group, *map(str, row), f"{part.share:.1%}"))
    noticed_by = Counter(one.noticed_by or "" for one in score.tried if one.by_cell)
    by_tests = [(_code(one.mutant.name), ", ".join(one.cells)) for one in score.tried if one.by_tests]
    survivors = [
        (_code(one.mutant.name), ", ".join(one.cells), _why(one.mutant.name, score.known, read))
        for one in score.tried
        if not one.noticed
    ]
    by_cell = sum(one.by_cell for one in score.tried)
    return (
        "# Mutants\n\n"
        "One small change each, by cosmic-ray, in a line that a cell runs. A mutant is noticed where a cell that runs "
        "the line does not pass. It is tried in the first such cell, and where that passes in every further one; one "
        "that is listed as equivalent in the first alone. A mutant of the engine that no cell notices is given to the "
        "engine's own tests, `tests/unit/merge`: a cell has no hostile input and interrupts no merge.\n\n"
        "The first draw is always the same, and recipes, tests and reasons were written after looking at what it left: "
        "that score is the first draw's. What a draw scores that nobody has looked at, `--draw 2` says. "
        "Operators that exchange identity and equality are left out.\n\n"
        f"**{score.share:.1%}** of the {score.counted} that are not equivalent were noticed, "
        f"{by_cell / max(score.counted, 1):.1%} by a cell.\n\n"
        + pipe_table(("", ""), list(score.facts.items()))
        + "\n\n"
        + pipe_table(
            ("code", "mutants", "noticed by a cell", "by a test", "equivalent", "not noticed", "score"),
            lines,
            numeric=(False, *[True] * 6),
        )
        + "\n\n## Noticed by cells\n\n"
        "The first check that failed. A stage's name alone: it raised, or did not come to its end.\n\n"
        + pipe_table(
            ("check", "mutants"), [(name, str(n)) for name, n in noticed_by.most_common()], numeric=(False, True)
        )
        + "\n\n## Not noticed\n\n"
        + pipe_table(("mutant", "tried in", "reading"), survivors)
        + "\n\n## Noticed by the engine's tests alone\n\n"
        + pipe_table(("mutant", "tried in"), by_tests)
        + "\n"
    )


def _why(name: str, known: Mapping[str, str], read: Mapping[str, str]) -> str:
    return (
        f"equivalent: {known[name]}" if name in known else read.get(name, "**a blind spot**: nobody has looked at it")
    )


def _code(text: str) -> str:
    return "`" + text.replace("|", "\\|").replace("`", "'") + "`"
