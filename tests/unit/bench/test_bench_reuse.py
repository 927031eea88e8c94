"""The case that runs a profile again: what it counts, and what reaches its goals."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from harness.bench.cases.reuse import counts, section
from harness.bench.settings import Settings


def test_cells_that_were_run_are_those_that_were_not_reused(tmp_path: Path) -> None:
    report = {"summary": {"cells": 3}, "reused": {"a": {}, "b": {}}}
    (tmp_path / "report.json").write_text(json.dumps(report))

    assert counts(tmp_path) == {"cells": 3, "ran": 1}


@pytest.mark.parametrize(
    ("seconds", "ran", "reached"), [(4.9, 0, [True, True]), (5.1, 0, [False, True]), (1.0, 1, [True, False])]
)
def test_the_slowest_run_counts_and_no_cell_may_run(seconds: float, ran: int, reached: list[bool]) -> None:
    again = [{"seconds": 1.0, "cells": 9, "ran": 0}, {"seconds": seconds, "cells": 9, "ran": ran}]
    said = section({"reuse": {"first": {"seconds": 900.0, "cells": 9, "ran": 9}, "again": again}}, Settings())

    assert [goal.reached for goal in said.goals] == reached
    assert said.tables[0].rows[0] == ("first", "9", "9", "900.0")
    assert said.tables[0].rows[2] == ("again", "9", str(ran), f"{seconds:.1f}")


def test_what_was_not_measured_is_not_reached() -> None:
    assert not any(goal.reached for goal in section({}, Settings()).goals)
