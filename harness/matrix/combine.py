"""From versions of each package to stacks: all of them, the extremes, or every pair at least once. Pure.

Versions come the newest first, and so do combinations: what is newest runs first. The same versions in the same order
always give the same combinations in the same order.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator, Sequence
from typing import Literal

from harness.errors import ConfigurationError

Strategy = Literal["full", "extremes", "pairwise"]
Combination = tuple[str, ...]
"""One version of each package."""
Allowed = Callable[[Combination], bool]


def combine(versions: Sequence[Sequence[str]], strategy: Strategy, *, allowed: Allowed) -> tuple[Combination, ...]:
    """Return combinations of one version of each package.

    - ``full``: all of them.
    - ``extremes``: all newest, all oldest, and each package's oldest among the newest of the others.
    - ``pairwise``: as few as a greedy choice finds so that any two versions of different packages that may stand
      together do so at least once.

    Args:
        versions: of each package, the newest first, each once, at least one.
        strategy: which of the three.
        allowed: whether a combination may be at all.

    Raises:
        ConfigurationError: none is allowed.
    """
    found = {"full": full, "extremes": extremes, "pairwise": pairwise}[strategy](versions, allowed)
    if not found:
        raise ConfigurationError(
            "Every combination of the selected versions is excluded.",
            remedy="Loosen include and exclude of the selection.",
        )
    return found


def full(versions: Sequence[Sequence[str]], allowed: Allowed) -> tuple[Combination, ...]:
    """Return every allowed combination, by the sum of the places of its versions: what is newest as a whole first."""
    return tuple(sorted(filter(allowed, itertools.product(*versions)), key=_Places(versions)))


def extremes(versions: Sequence[Sequence[str]], allowed: Allowed) -> tuple[Combination, ...]:
    """Return all newest, all oldest, and each oldest among the newest; each once, as far as they are allowed."""
    newest = tuple(of[0] for of in versions)
    oldest = tuple(of[-1] for of in versions)
    among = [(*newest[:place], oldest[place], *newest[place + 1 :]) for place in range(len(versions))]
    return tuple(it for it in dict.fromkeys([newest, oldest, *among]) if allowed(it))


def pairwise(versions: Sequence[Sequence[str]], allowed: Allowed) -> tuple[Combination, ...]:
    """Return combinations that hold every pair of versions that any allowed one holds.

    Greedy: for each pair that is not covered yet, in a fixed order, the allowed combination with it that covers most
    pairs not covered yet, the newest of those that cover as many. Pairs of the two packages with the most versions come
    first: they alone need as many combinations as there are such pairs, and the others fit into them.
    """
    places = _Places(versions)
    uncovered = {pair for it in itertools.product(*versions) if allowed(it) for pair in _pairs(it)}
    by_size = sorted(range(len(versions)), key=lambda package: (-len(versions[package]), package))
    chosen: list[Combination] = []
    for one, other in itertools.combinations(by_size, 2):
        first, second = sorted((one, other))
        for pair in itertools.product(versions[first], versions[second]):
            if (first, pair[0], second, pair[1]) not in uncovered:
                continue
            best = max(
                (it for it in _with(versions, first, second, pair) if allowed(it)),
                key=lambda it: (sum(found in uncovered for found in _pairs(it)), [-place for place in places(it)]),
            )
            chosen.append(best)
            uncovered -= set(_pairs(best))
    if len(versions) == 1:
        return full(versions, allowed)
    return tuple(sorted(chosen, key=places))


def _with(versions: Sequence[Sequence[str]], first: int, second: int, pair: tuple[str, str]) -> Iterator[Combination]:
    fixed = {first: (pair[0],), second: (pair[1],)}
    return itertools.product(*(fixed.get(place, tuple(of)) for place, of in enumerate(versions)))


def _pairs(combination: Combination) -> Iterator[tuple[int, str, int, str]]:
    """Yield each two versions of a combination, with the places of their packages."""
    for (first, one), (second, other) in itertools.combinations(enumerate(combination), 2):
        yield first, one, second, other


class _Places:
    """The order of combinations: how far their versions are from the newest, summed up, then package by package."""

    def __init__(self, versions: Sequence[Sequence[str]]) -> None:
        self._places = [{version: place for place, version in enumerate(of)} for of in versions]

    def __call__(self, combination: Combination) -> list[int]:
        own = [places[version] for places, version in zip(self._places, combination, strict=True)]
        return [sum(own), *own]
