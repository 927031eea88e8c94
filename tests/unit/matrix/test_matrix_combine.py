"""Strategies: which combinations of versions are tried."""

from __future__ import annotations

import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from harness.errors import ConfigurationError
from harness.matrix.combine import Combination, combine

TF, PEFT, TRL = ("5.3", "5.2", "5.1"), ("0.21", "0.20"), ("1.2", "1.1")


def anything(combination: Combination) -> bool:
    return len(combination) == 3


def test_full_is_the_product_with_the_newest_first() -> None:
    found = combine((TF, PEFT, TRL), "full", allowed=anything)

    assert len(found) == len(set(found)) == 12
    assert found[:4] == (("5.3", "0.21", "1.2"), ("5.3", "0.21", "1.1"), ("5.3", "0.20", "1.2"), ("5.2", "0.21", "1.2"))
    assert found[-1] == ("5.1", "0.20", "1.1")


def test_extremes_are_the_newest_the_oldest_and_each_one_old_among_the_newest() -> None:
    assert combine((TF, PEFT, TRL), "extremes", allowed=anything) == (
        ("5.3", "0.21", "1.2"),
        ("5.1", "0.20", "1.1"),
        ("5.1", "0.21", "1.2"),
        ("5.3", "0.20", "1.2"),
        ("5.3", "0.21", "1.1"),
    )


@pytest.mark.parametrize("strategy", ["full", "extremes", "pairwise"])
def test_one_version_of_each_is_one_combination(strategy: str) -> None:
    only = (("5.3",), ("0.21",), ("1.2",))

    assert combine(only, strategy, allowed=anything) == (("5.3", "0.21", "1.2"),)  # type: ignore[arg-type]


def test_pairwise_covers_every_pair_with_as_few_as_can_be() -> None:
    # 3 x 2 pairs of the two longest lists: no fewer than 6, and 6 are enough
    assert combine((TF, PEFT, TRL), "pairwise", allowed=anything) == (
        ("5.3", "0.21", "1.2"),
        ("5.3", "0.20", "1.1"),
        ("5.2", "0.21", "1.1"),
        ("5.2", "0.20", "1.2"),
        ("5.1", "0.21", "1.2"),
        ("5.1", "0.20", "1.1"),
    )


def test_what_is_excluded_is_in_no_combination() -> None:
    def allowed(combination: Combination) -> bool:
        return combination[:2] != ("5.3", "0.20")

    for strategy, count in (("full", 10), ("extremes", 4), ("pairwise", 6)):
        found = combine((TF, PEFT, TRL), strategy, allowed=allowed)  # type: ignore[arg-type]
        assert len(found) == count
        assert all(map(allowed, found))


def test_that_nothing_is_left_is_an_error() -> None:
    with pytest.raises(ConfigurationError, match="is excluded"):
        combine((TF, PEFT, TRL), "full", allowed=lambda _: False)


def pairs(combination: Combination) -> set[tuple[int, str, int, str]]:
    numbered = list(enumerate(combination))
    return {(*one, *other) for one, other in itertools.combinations(numbered, 2)}


sizes = st.tuples(*[st.integers(1, 6)] * 3)


@given(sizes=sizes, excluded=st.sets(st.tuples(*[st.integers(0, 5)] * 3), max_size=20))
def test_pairwise_covers_whatever_pairs_may_be(sizes: tuple[int, int, int], excluded: set[tuple[int, ...]]) -> None:
    versions = [[f"{package}.{number}" for number in range(size)] for package, size in enumerate(sizes)]

    def allowed(combination: Combination) -> bool:
        return tuple(int(version.split(".")[1]) for version in combination) not in excluded

    possible = [it for it in itertools.product(*versions) if allowed(it)]
    if not possible:
        return
    found = combine(versions, "pairwise", allowed=allowed)

    assert set(found) <= set(possible)
    assert len(found) == len(set(found))
    assert set().union(*map(pairs, found)) == set().union(*map(pairs, possible))
    assert found == combine([list(of) for of in versions], "pairwise", allowed=allowed)
    if not excluded:
        largest, second = sorted(sizes)[:0:-1]
        assert largest * second <= len(found) <= len(possible)


@given(sizes=sizes)
def test_pairwise_is_seldom_much_more_than_it_must_be(sizes: tuple[int, int, int]) -> None:
    versions = [[str(number) for number in range(size)] for size in sizes]
    largest, second = sorted(sizes)[:0:-1]

    assert len(combine(versions, "pairwise", allowed=anything)) <= 1.5 * largest * second


def test_as_many_releases_as_there_are_take_no_time() -> None:
    versions = [
        [f"{package}{number}" for number in range(size)] for package, size in zip("abc", (60, 14, 40), strict=True)
    ]

    assert 60 * 40 <= len(combine(versions, "pairwise", allowed=anything)) < 60 * 14 * 40 / 4
