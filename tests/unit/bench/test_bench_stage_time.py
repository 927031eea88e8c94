"""What checks cost: seconds of the same cells by two commits."""

from __future__ import annotations

from harness.bench.cases.stage_time import section
from harness.bench.settings import Settings


def test_the_goal_is_the_median_over_cells_and_rounds() -> None:
    rounds = [{"a": {"before": 1.0, "now": 1.2}, "b": {"before": 2.0, "now": 2.8}}, {"a": {"before": 1.0, "now": 1.3}}]
    said = section({"stage-time": {"before": "4dd177c255", "rounds": rounds}}, Settings())

    assert said.goals[0].measured is not None
    assert said.goals[0].measured.startswith("1.30 [")
    assert said.goals[0].reached
    assert said.tables[0].rows == (("1", "2", "1.50", "2.00"), ("2", "1", "1.00", "1.30"))


def test_what_was_not_measured_is_not_reached() -> None:
    assert not section({}, Settings()).goals[0].reached
