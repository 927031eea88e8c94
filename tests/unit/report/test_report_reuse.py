"""Results of earlier runs: every format and the terminal say which they are and how old."""

from __future__ import annotations

import csv
import dataclasses
import io
import json
from xml.etree import ElementTree as ET

import pytest
from report_samples import cell, measured, sample_rows
from rich.console import Console

from harness.report import reuse
from harness.report.formats.csv_table import frame, render_csv
from harness.report.formats.html import render_html
from harness.report.formats.json_report import render_json
from harness.report.formats.junit import render_junit
from harness.report.formats.markdown import render_markdown
from harness.report.table import Row
from harness.report.terminal import print_table

STARTED = "2026-11-25T10:00:00+00:00"
LATER = "2026-11-28T11:30:00+00:00"
AGE = 3 * 86400 + 5400


def row(seed: int, *, reused: str | None, started: str | None = STARTED) -> Row:
    """A pass, taken over at that time."""
    result = measured(cell("glm4_moe").model_copy(update={"seed": seed}))
    return Row(result=result.model_copy(update={"reused": reused, "started": started}), status="ok")


ROWS = [row(0, reused=None), row(1, reused=LATER), row(2, reused="2026-11-25T12:00:00Z")]


def test_the_sentence_counts_and_names_the_span() -> None:
    assert reuse.sentence(ROWS) == "2 of 3 results were reused from earlier runs, 2 hours to 3 days old."
    assert reuse.sentence(ROWS[:2]) == "1 of 2 results was reused from earlier runs, 3 days old."
    assert reuse.sentence(ROWS[:1]) is None
    assert reuse.sentence([]) is None


@pytest.mark.parametrize(("started", "reused"), [(None, LATER), ("<b>", LATER), (STARTED, "# x"), (STARTED, "9" * 50)])
def test_a_time_that_is_none_is_an_unknown_age(started: str | None, reused: str) -> None:
    odd = row(0, reused=reused, started=started)

    assert reuse.age_seconds(odd.result) is None
    assert reuse.note(odd.result) == "reused, made an unknown time before"
    assert reuse.sentence([odd]) == "1 of 1 result was reused from earlier runs, of unknown age."
    assert "| unknown | an unknown time |" in render_markdown([odd])
    assert json.loads(render_json([odd]))["reused"][odd.result.cell_id]["age_seconds"] is None


def test_one_that_was_taken_over_before_it_was_made_is_new() -> None:
    assert reuse.age_seconds(row(0, reused="2026-11-25T09:59:59+00:00").result) == 0


def test_every_format_says_which_and_how_old() -> None:
    ids = [it.result.cell_id for it in ROWS]
    markdown, page = render_markdown(ROWS), render_html(ROWS)
    table = {line["cell"]: line["age_seconds"] for line in csv.DictReader(io.StringIO(render_csv(ROWS)))}
    suites = ET.fromstring(render_junit(ROWS))  # noqa: S314 - it is our own
    cases = {case.attrib["name"]: case.findtext("system-out") for case in suites.iter("testcase")}
    said = json.loads(render_json(ROWS))

    for text in (markdown, page):
        assert "2 of 3 results were reused from earlier runs, 2 hours to 3 days old." in text
    assert f"| `{ids[1]}` | 2026-11-25 10:00 UTC | 3 days |" in markdown
    assert f"`{ids[0]}`" not in markdown.split("## Reused results")[1]
    assert page.count("reused, made 3 days before") == 2, "in the row and in its details"
    assert table == {ids[0]: "", ids[1]: f"{AGE}.0", ids[2]: "7200.0"}
    assert sorted(cases.values(), key=str) == [
        None, "reused, made 2 hours before", "reused, made 3 days before"
    ]  # fmt: skip
    assert said["reused"] == {
        ids[1]: {"at": LATER, "age_seconds": AGE},
        ids[2]: {"at": "2026-11-25T12:00:00Z", "age_seconds": 7200},
    }
    assert "reused" not in said["rows"][0]["result"]


def test_the_terminal_says_it_below_the_table() -> None:
    text = io.StringIO()
    print_table(Console(file=text, width=240), ROWS)

    assert "3 days old. --fresh runs them anew." in text.getvalue()


def test_where_all_cells_ran_nothing_is_said() -> None:
    rows = sample_rows()

    assert "reused" not in render_markdown(rows).lower()
    assert "reused" not in render_junit(rows)
    assert json.loads(render_json(rows))["reused"] == {}


def test_the_csv_is_the_data_frame() -> None:
    """It is written without pandas, which would be imported for this alone."""
    rows = [*sample_rows(), *(dataclasses.replace(it, options="--config x") for it in ROWS[1:])]

    assert frame(rows).to_csv(lineterminator="\n") == render_csv(rows)
    assert list(frame([]).columns) == render_csv([]).strip().split(",")[1:]
