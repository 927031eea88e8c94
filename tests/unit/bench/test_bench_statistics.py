"""Pairs, ratios and their intervals."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.bench.pairs import rounds
from harness.bench.section import Goal, at_least, at_most, bounded, interval, seconds
from harness.bench.statistics import Estimate, estimate, ratios


def test_two_members_alternate() -> None:
    assert rounds(("copy", "ours"), 3) == [("copy", "ours"), ("ours", "copy"), ("copy", "ours")]


@given(st.integers(1, 6), st.integers(0, 30))
def test_everybody_runs_once_in_each_round_and_stands_in_every_place(members: int, count: int) -> None:
    names = [f"m{number}" for number in range(members)]
    found = rounds(names, count)

    assert [sorted(order) for order in found] == [names] * count
    for start in range(count - members + 1):
        for place in range(members):
            assert {order[place] for order in found[start : start + members]} == set(names)


def test_ratios_are_of_pairs() -> None:
    assert ratios([2.0, 9.0], [1.0, 3.0]) == [2.0, 3.0]
    with pytest.raises(ValueError, match="shorter"):
        ratios([1.0, 2.0], [1.0])


def test_the_interval_of_equal_values_is_that_value() -> None:
    assert estimate([1.5] * 7) == Estimate(median=1.5, low=1.5, high=1.5, pairs=7)


def test_the_interval_agrees_with_order_statistics() -> None:
    """For 0 to 20 the sign test's exact 95 % interval of the median is from the 6th to the 16th value: 5 to 15."""
    found = estimate([float(value) for value in range(21)])

    assert found.median == 10.0
    assert found.low in {5.0, 6.0, 7.0}
    assert found.high in {13.0, 14.0, 15.0}


def test_one_outlier_does_not_move_the_median() -> None:
    found = estimate([1.0] * 19 + [100.0])

    assert (found.median, found.low, found.high) == (1.0, 1.0, 1.0)


def test_the_same_values_give_the_same_interval() -> None:
    values = [1.0, 1.3, 0.9, 1.1, 1.2]

    assert estimate(values) == estimate(list(values))


def test_nothing_has_no_median() -> None:
    with pytest.raises(ValueError, match="nothing"):
        estimate([])


def _estimate(median: float, high: float) -> Estimate:
    return Estimate(median=median, low=0.9, high=high, pairs=5)


@pytest.mark.parametrize(
    ("goal", "reached"),
    [
        (at_most("x", _estimate(1.1, 1.3), 1.1, 1.3), True),
        (at_most("x", _estimate(1.11, 1.2), 1.1, 1.3), False),
        (at_most("x", _estimate(1.0, 1.31), 1.1, 1.3), False),
        (at_most("x", _estimate(1.0, 9.0), 1.1), True),
        (at_most("x", None, 1.1), False),
        (at_least("x", _estimate(8.0, 9.0), 8.0), True),
        (at_least("x", _estimate(7.9, 9.0), 8.0), False),
        (at_least("x", None, 8.0), False),
        (bounded("x", 1.05, 1.05, ""), True),
        (bounded("x", 1025.0, 1024.0, "MiB"), False),
        (bounded("x", None, 10.0, "s"), False),
    ],
)
def test_a_goal_is_reached_only_by_a_value_that_reaches_it(goal: Goal, reached: bool) -> None:
    assert goal.reached is reached


def test_numbers_read_as_a_person_writes_them() -> None:
    assert interval(Estimate(median=1.074, low=1.02, high=1.118, pairs=9)) == "1.07 [1.02, 1.12]"
    assert seconds([3.0, 1.0, 2.0]) == "2.00 (1.00 to 3.00)"
    assert seconds([1.0, 2.0]) == "1.50 (1.00 to 2.00)"
    assert bounded("x", 4.654, 10.0, "s") == Goal(what="x", wanted="≤ 10 s", measured="4.65 s", reached=True)
