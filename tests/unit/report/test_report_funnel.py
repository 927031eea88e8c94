"""From what was asked for to what was merged: in a row's details and in a section of its own."""

from __future__ import annotations

from report_samples import cell, measured

from harness.report.details import sections
from harness.report.figures import MISSING
from harness.report.formats.markdown import render_markdown
from harness.report.funnel import TITLE, losing
from harness.report.table import Row
from harness.result import Funnel

LEVEL = {"asked": 12, "attached": 12, "gradient": 12, "moved": 12, "saved": 12, "reloaded": 12, "merged": 12}


def _row(**funnel: Funnel) -> Row:
    result = measured(cell("glm4_moe"))
    result.funnel = funnel  # type: ignore[assignment]  # kinds are words here
    return Row(result=result, status="regression")


def test_a_kind_that_lost_something_is_shown_and_marked() -> None:
    row = _row(
        expert=Funnel(asked=4, attached=4, gradient=4, moved=4, saved=4, reloaded=None, merged=4),
        attention=Funnel(**LEVEL),
        dense=Funnel(asked=3, attached=0, gradient=0, moved=0, saved=0, reloaded=None, merged=0),
    )
    (section,) = (found for found in sections(row) if found.title == TITLE)

    assert [(line.cells, line.bad) for line in section.lines] == [
        (("attention", "12", "12", "12", "12", "12", "12", "12"), False),
        (("expert", "4", "4", "4", "4", "4", MISSING, "4"), False),
        (("dense", "3", "0", "0", "0", "0", MISSING, "0"), True),
    ]
    page = render_markdown([row])
    assert f"## {TITLE}" in page
    assert f"| `dense` | 3 | 0 | 0 | 0 | 0 | {MISSING} | 0 |" in page
    assert "`attention` | 12" not in page


def test_where_nothing_got_lost_there_is_no_section() -> None:
    assert losing([_row(attention=Funnel(**LEVEL)), _row()]) == []
    assert TITLE not in render_markdown([_row(attention=Funnel(**LEVEL))])
