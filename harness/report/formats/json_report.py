"""The report for programs; pure.

Keys are sorted. Text is ASCII with escapes: nothing in it reaches a terminal as a control code. When each cell started
stands apart under ``started``, and what was taken over from earlier runs under ``reused``. So two runs of the same
thing differ there and in measured durations only. Numbers that JSON has no word for are the strings ``NaN``,
``Infinity`` and ``-Infinity``, which pydantic reads back: a KL that is not a number must not turn into one that was not
measured.
"""

from __future__ import annotations

import json
import math
from collections.abc import Iterable, Mapping
from typing import Any

from harness.report import reuse
from harness.report.format import Format
from harness.report.last_run import last_run
from harness.report.look import look
from harness.report.summary import summarise
from harness.report.table import Row, ordered

SCHEMA_VERSION = 1


def _finite(value: Any) -> Any:
    """Return a tree of plain JSON values with every number that JSON cannot write as a string."""
    if isinstance(value, float) and not math.isfinite(value):
        return "NaN" if math.isnan(value) else "Infinity" if value > 0 else "-Infinity"
    if isinstance(value, Mapping):
        return {str(key): _finite(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_finite(item) for item in value]
    return value


def _row(row: Row) -> dict[str, Any]:
    expectation = {"reason": row.expectation_reason, "link": row.expectation_link}
    return {
        "cell": row.result.cell_id,
        "status": row.status,
        "standing": row.standing,
        "label": look(row).word,
        "passed": row.passed,
        "sentence": row.sentence,
        "expectation": expectation if row.expectation_reason or row.expectation_link else None,
        "reproduce": row.reproduce,
        "result": _finite(
            row.result.model_dump(mode="json", exclude={"started", "last_passed", "reused", "node", "lost"})
        ),
    }


def render_json(rows: Iterable[Row]) -> str:
    """Return the report as JSON: ``schema_version``, ``summary``, ``faults``, ``rows``, ``started`` and ``reused``.

    ``faults`` is what the last published run of ``harness faults`` has shown, or null.

    ``rows[].result`` is a ``CellResult`` without times of day; ``rows[].standing`` is the status, or ``not-run`` for
    a cell that did not run (``status`` is null then). ``reused`` has, by cell, when a result was taken over and how old
    it was then, in seconds (null where that is not known).

    Raises:
        ValueError: when two rows are of the same cell.
    """
    rows = ordered(rows)
    summary = summarise(rows)
    report = {
        "schema_version": SCHEMA_VERSION,
        "summary": {
            "cells": summary.cells,
            "colour": summary.colour,
            "green": summary.colour == "green",
            "outcomes": summary.outcomes,
            "sentence": summary.sentence,
            "standings": summary.standings,
        },
        "faults": last_run(),
        "rows": [_row(row) for row in rows],
        "started": {row.result.cell_id: row.result.started for row in rows if row.result.started is not None},
        "reused": {
            row.result.cell_id: {"at": row.result.reused, "age_seconds": reuse.age_seconds(row.result)}
            for row in reuse.reused(rows)
        },
    }
    return json.dumps(report, sort_keys=True, indent=1, ensure_ascii=True, allow_nan=False) + "\n"


FORMAT = Format(
    file="report.json",
    serves="a program: `summary.colour` (`green`, `amber`, `red`), `summary.standings`, "
    "`rows[].standing`, `rows[].result`",
    render=lambda rows, _generated: render_json(rows),
)
