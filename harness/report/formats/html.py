"""The report as one self-contained HTML page; pure, but for reading its template from the package.

The table is in the document and can be read without scripts. The details of each row are embedded as JSON. The page's
script draws them when a row is opened, as plain text only, so that two thousand rows stay light. A content security
policy names the page's own style and script by their hashes. So whatever slipped through escaping could still not run,
and nothing can be loaded from anywhere.
"""

from __future__ import annotations

import base64
import hashlib
import json
from collections.abc import Iterable, Sequence
from functools import cache
from importlib.resources import files
from typing import Any

from jinja2 import Environment, PackageLoader, StrictUndefined
from markupsafe import Markup
from packaging.version import Version

from harness.contract.outcomes import OUTCOMES
from harness.report import details, figures, quantized, reuse, shims
from harness.report.format import Format
from harness.report.last_run import last_run
from harness.report.look import LEGEND, look, outcome_text, overview, severity
from harness.report.summary import count_of, summarise
from harness.report.table import COLUMNS, STANDINGS, Row, ordered, stack_title
from harness.report.text import clean, one_line


@cache
def _environment() -> Environment:
    return Environment(
        loader=PackageLoader("harness.report", "templates"),
        autoescape=True,
        undefined=StrictUndefined,
        trim_blocks=True,
        lstrip_blocks=True,
    )


@cache
def _asset(name: str) -> str:
    return files("harness.report").joinpath("templates", name).read_text(encoding="utf-8").strip()


def _hash_source(text: str) -> str:
    """Return a source expression for a content security policy (CSP level 3, ``hash-source``)."""
    return f"'sha256-{base64.b64encode(hashlib.sha256(text.encode()).digest()).decode()}'"


def embedded_json(value: Any) -> Markup:
    """Return JSON that is safe inside a script element.

    No ``<``, ``>`` or ``&`` is left that could end or open anything.
    """
    text = json.dumps(value, ensure_ascii=True, allow_nan=False, separators=(",", ":"), sort_keys=True)
    for character in "<>&":
        text = text.replace(character, f"\\u{ord(character):04x}")
    return Markup(text)  # noqa: S704 - the three characters that HTML could read are escaped in the line above


def _details(row: Row) -> dict[str, Any]:
    return {
        "id": row.result.cell_id,
        "reason": details.reason(row),
        "sentence": clean(row.sentence) if row.sentence else None,
        "declared": clean(row.expectation_reason) if row.expectation_reason else None,
        "link": details.web_link(row),
        "log": one_line(row.result.log, 2000) if row.result.log else None,
        "reproduce": row.reproduce,
        "sections": [
            {
                "title": section.title,
                "head": section.head,
                "lines": [line.cells for line in section.lines],
                "bad": [index for index, line in enumerate(section.lines) if line.bad],
            }
            for section in details.sections(row)
        ],
    }


def _why(row: Row) -> str:
    """Return the short text under the outcome: what a person wants to know before opening the row."""
    words = shims.note(row.result) or ""
    if not row.passed:
        checks = details.failed_checks(row)
        words = checks[0] if checks else row.result.reason or details.verdict(row) or row.expectation_reason or ""
        words = one_line(words, 110)
    return "; ".join(filter(None, (words, reuse.note(row.result))))


def _version_ranks(rows: Sequence[Row]) -> dict[str, int]:
    """Return each version's place among all of them, which is what the page sorts versions by."""
    versions = {column.text(row) for row in rows for column in COLUMNS[:3]}
    return {version: rank for rank, version in enumerate(sorted(versions, key=Version))}


def _line(row: Row, ranks: dict[str, int]) -> dict[str, Any]:
    cells = []
    for column in COLUMNS:
        text, value = column.text(row), column.value(row)
        key = ranks[text] if column.key in {"transformers", "peft", "trl"} else value
        # What follows the first word (a recipe's options, tensors without effect) goes on a quieter line of its own.
        first, _, note = text.partition(" ")
        note = note.strip("()").replace("+", " +").strip()
        cells.append(
            {"text": first, "note": note, "key": "" if key is None else key, "missing": text == figures.MISSING}
        )
    return {
        "cells": cells,
        "id": row.result.cell_id,
        "look": look(row),
        "outcome": row.result.outcome,
        "outcome_key": severity(row)[0] * 100 + severity(row)[1],
        "outcome_text": outcome_text(row).removeprefix(f"{look(row).symbol} "),
        "standing": row.standing,
        "stack": row.result.cell.stack.id,
        "family": row.result.cell.family,
        "recipe": row.result.cell.recipe,
        "engine": row.result.cell.engine,
        "why": _why(row),
    }


def _quantized(rows: Sequence[Row]) -> dict[str, Any] | None:
    """Return the table of QLoRA cells; None where there are none."""
    chosen = quantized.quantized(rows)
    if not chosen:
        return None
    return {
        "title": quantized.TITLE,
        "introduction": quantized.INTRODUCTION,
        "footnote": quantized.FOOTNOTE,
        "columns": quantized.COLUMNS,
        "lines": [(row.result.cell_id, [column.text(row) for column in quantized.COLUMNS]) for row in chosen],
    }


def _choices(rows: Sequence[Row]) -> list[dict[str, Any]]:
    """Return the page's filters, each with the values that occur."""
    stacks = {row.result.cell.stack.id: stack_title(row) for row in rows}
    outcomes = {row.result.outcome for row in rows}
    standings = {row.standing for row in rows}
    options: dict[str, list[tuple[str, str]]] = {
        "status": [(name, name.replace("-", " ")) for name in STANDINGS if name in standings],
        "outcome": [(name, name) for name in OUTCOMES if name in outcomes],
        "stack": list(stacks.items()),
        "family": [(name, name) for name in sorted({row.result.cell.family for row in rows})],
        "recipe": [(name, name) for name in sorted({row.result.cell.recipe for row in rows})],
        "engine": [(name, name) for name in sorted({row.result.cell.engine for row in rows})],
    }
    return [{"name": name, "options": found} for name, found in options.items()]


def render_html(rows: Iterable[Row], generated: str | None = None) -> str:
    """Return the report as one HTML page that needs nothing else.

    Args:
        rows: the cells, in any order.
        generated: when the report was made, as the page should say it; None leaves it out.

    Raises:
        ValueError: when two rows are of the same cell.
    """
    rows = ordered(rows)
    ranks = _version_ranks(rows)
    summary = summarise(rows)
    style, script = _asset("report.css"), _asset("report.js")
    policy = (
        f"default-src 'none'; style-src {_hash_source(style)}; script-src {_hash_source(script)}; "
        "base-uri 'none'; form-action 'none'"
    )
    return _environment().get_template("report.html.j2").render(
        policy=policy,
        style=Markup(style),  # noqa: S704 - a file of this package
        script=Markup(script),  # noqa: S704 - a file of this package
        data=embedded_json([_details(row) for row in rows]),
        generated=None if generated is None else one_line(generated),
        summary=summary,
        worth=last_run(),
        reused=reuse.sentence(rows),
        tallies=[
            {"standing": name, "text": count_of(name, count), "look": look(next(r for r in rows if r.standing == name))}
            for name, count in summary.standings.items()
        ],
        overview=overview(rows),
        legend=LEGEND,
        columns=COLUMNS,
        filters=_choices(rows),
        lines=[_line(row, ranks) for row in rows],
        quantized=_quantized(rows),
    ) + "\n"  # fmt: skip


FORMAT = Format(
    file="report.html",
    serves="a person; one self-contained file",
    render=render_html,
)
