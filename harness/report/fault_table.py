"""What came of the planted faults and of the clean cells beside them: the table, the sentence, the JSON; pure."""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from typing import Literal

from harness.contract.checks import CONTROL
from harness.faults import fault, place_of
from harness.planted import planted_fault
from harness.report.pipe_table import pipe_table
from harness.result import CellResult

State = Literal["noticed", "missed", "unjudged"]


@dataclass(frozen=True, kw_only=True)
class FaultRow:
    """One planted fault.

    Attributes:
        name: the fault's.
        place: where something goes wrong, its folder.
        breaks: what it breaks.
        cell_id: the cell that it was planted in.
        needed: what must notice it.
        by: what has.
        state: ``noticed`` by all that must, ``missed`` by some, or ``unjudged``.
        sentence: the same in words.
        reference: where it happened, None where that is not known of.
        blind: why no check sees it yet, None where one should.
    """

    name: str
    place: str
    breaks: str
    cell_id: str
    needed: tuple[str, ...]
    by: tuple[str, ...]
    state: State
    sentence: str
    reference: str | None
    blind: str | None

    @property
    def as_declared(self) -> bool:
        """Whether it was noticed, or is known to be missed."""
        return (self.state == "noticed") == (self.blind is None)


@dataclass(frozen=True, kw_only=True)
class FaultReport:
    """What a run of the catalogue has shown.

    Attributes:
        rows: planted faults, by place and name.
        clean: ids of the same cells with nothing planted.
        false_alarms: those of them that did not pass, with the reason.
        controls: controls that were tried in the clean cells.
        rejected: those of them that were rejected.
    """

    rows: tuple[FaultRow, ...]
    clean: tuple[str, ...]
    false_alarms: dict[str, str]
    controls: int
    rejected: int

    @property
    def as_it_must_be(self) -> bool:
        """Whether every fault was noticed by all that must notice it, known blind spots apart, and nothing else was."""
        return all(row.as_declared for row in self.rows) and not self.false_alarms and self.rejected == self.controls

    @property
    def sentence(self) -> str:
        """The head of every report."""
        noticed = sum(row.state == "noticed" for row in self.rows)
        return (
            f"faults noticed {noticed}/{len(self.rows)} · controls rejected {self.rejected}/{self.controls} · "
            f"false alarms {len(self.false_alarms)}/{len(self.clean)} clean cells"
        )


def fault_report(results: Sequence[CellResult]) -> FaultReport:
    """Make the report of a run whose cells have a fault planted, or nothing."""
    rows = sorted((_row(result) for result in results if result.cell.fault), key=lambda row: (row.place, row.name))
    clean = [result for result in results if not result.cell.fault]
    controls = [check for result in clean for check in result.checks if check.name.startswith(CONTROL)]
    return FaultReport(
        rows=tuple(rows),
        clean=tuple(result.cell_id for result in clean),
        false_alarms={it.cell_id: it.reason or it.outcome for it in clean if it.outcome != "pass"},
        controls=len(controls),
        rejected=sum(check.passed for check in controls),
    )


def _row(result: CellResult) -> FaultRow:
    name = str(result.cell.fault)
    found, became = fault(name), planted_fault(result)
    if became is None:
        raise ValueError(f"{result.cell_id} has no fault")
    return FaultRow(
        name=name,
        place=place_of(name),
        breaks=found.breaks,
        cell_id=result.cell_id,
        needed=tuple(sorted(found.noticed_by)),
        by=became.by,
        state=became.state,
        sentence=became.sentence,
        reference=found.reference,
        blind=found.blind,
    )


def fault_markdown(report: FaultReport, *, ran: str) -> str:
    """Return the report as a page.

    Args:
        report: what was shown.
        ran: when and of which commit.
    """
    marks = {"noticed": "✓ noticed", "missed": "✗ MISSED", "unjudged": "✗ not judged"}
    table = pipe_table(
        ("where", "fault", "breaks", "must be noticed by", "became", "noticed by", "cell"),
        [
            (
                row.place,
                f"`{row.name}`",
                row.breaks + (f" ({row.reference})" if row.reference else ""),
                ", ".join(row.needed),
                marks[row.state],
                ", ".join(row.by),
                f"`{row.cell_id}`",
            )
            for row in report.rows
        ],
    )
    blind = "".join(f"- `{row.name}`: {row.blind}\n" for row in report.rows if row.blind)
    alarms = "".join(f"- `{cell}`: {reason}\n" for cell, reason in report.false_alarms.items())
    how = (
        "Each fault is planted in a cell of its own, which must not pass and whose named checks must fail. The same "
        "cells with nothing planted must pass."
    )
    parts = [
        f"# Planted faults\n\n{report.sentence} ({ran})\n",
        f"{how}\n\n{table}\n",
        f"## Known blind spots\n\nNo check sees these yet. They count as missed.\n\n{blind}" if blind else "",
        f"## False alarms\n\n{alarms}" if alarms else "",
    ]
    return "\n".join(part for part in parts if part)


def fault_json(report: FaultReport, *, ran: str) -> str:
    """Return the report as JSON."""
    document = {"sentence": report.sentence, "ran": ran, **asdict(report)}
    return json.dumps(document, indent=1, sort_keys=True, ensure_ascii=True) + "\n"
