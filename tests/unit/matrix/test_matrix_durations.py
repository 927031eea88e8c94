"""How long cells will take, and how a plan says it."""

from __future__ import annotations

import json

from harness.matrix.catalogue import Catalogue
from harness.matrix.config import MatrixConfig
from harness.matrix.durations import Duration, expected_durations, makespan
from harness.matrix.plan import Selection, plan_cells
from harness.matrix.plan_views import OUTLOOK_COLUMNS, Outlook, outlook_columns, plan_json

FIRST = "tf5.5.0-peft0.19.1-trl0.25.1"


def test_a_cell_takes_what_it_took_or_what_it_took_elsewhere(config: MatrixConfig, catalogue: Catalogue) -> None:
    recorded = {
        f"alpha/lora@{FIRST}": 10.0,
        "alpha/lora@tf4.0.0-peft0.1-trl0.1": 20.0,
        "alpha/lora@tf4.0.1-peft0.1-trl0.1": 40.0,
        "alpha/lora@tf4.0.1-peft0.1-trl0.1+dtype=bf16": 99.0,
        "beta/lora-experts@tf4.0.0-peft0.1-trl0.1+dtype=bf16": 99.0,
    }
    cells = plan_cells(config, catalogue, Selection(select=("alpha/lora@*", "beta/*@tf5.5*")))
    found = expected_durations(cells, recorded)

    assert found[f"alpha/lora@{FIRST}"] == Duration(seconds=10, basis="recorded")
    # the median of 10, 20 and 40; what is not the same cell does not count
    assert found["alpha/lora@tf4.57.6-peft0.19.1-trl0.25.1"] == Duration(seconds=20, basis="similar")
    assert f"beta/lora-experts@{FIRST}" not in found


def test_work_takes_no_less_than_its_longest_part() -> None:
    assert makespan([10, 20, 30], jobs=2) == 30
    assert makespan([10, 10, 10, 10], jobs=2) == 20
    assert makespan([10, 20], jobs=1) == 30
    assert makespan([], jobs=2) == 0


def test_what_is_known_is_said_in_the_table() -> None:
    known = Outlook(
        why=("profiles.a.cells.0", "profiles.a.cells.1"),
        environment=True,
        duration=Duration(seconds=9.6, basis="similar"),
    )

    assert outlook_columns(known) == {
        "environment": "there",
        "result": "to be run",
        "expected time": "~10 s",
        "selected by": "profiles.a.cells.0; profiles.a.cells.1",
    }
    nothing = ("unknown", "to be run", "?", "")
    assert outlook_columns(Outlook()) == dict(zip(OUTLOOK_COLUMNS, nothing, strict=True))
    kept = outlook_columns(Outlook(environment=False, kept=7200, duration=Duration(seconds=3, basis="recorded")))
    assert (kept["result"], kept["expected time"]) == ("kept, 2 hours old", "-"), "it is not run"
    assert outlook_columns(Outlook(environment=False))["environment"] == "to be made"
    assert tuple(outlook_columns(known)) == OUTLOOK_COLUMNS


def test_what_is_known_is_in_the_json(config: MatrixConfig, catalogue: Catalogue) -> None:
    selection = Selection(select=("alpha/*@tf4*",))
    cells = plan_cells(config, catalogue, selection)
    known = {cells[0].id: Outlook(why=("here",), environment=False, duration=Duration(seconds=3, basis="recorded"))}
    (cell,) = json.loads(plan_json(cells, selection, known))["cells"]

    assert (cell["why"], cell["environment"], cell["seconds"], cell["seconds_basis"]) == (
        ["here"],
        False,
        3,
        "recorded",
    )
    (cell,) = json.loads(plan_json(cells, selection, {cells[0].id: Outlook()}))["cells"]
    assert (cell["environment"], cell["seconds"], cell["seconds_basis"]) == (None, None, None)
    assert cell["kept_age_seconds"] is None
    (cell,) = json.loads(plan_json(cells, selection, {cells[0].id: Outlook(kept=60.0)}))["cells"]
    assert cell["kept_age_seconds"] == 60.0
