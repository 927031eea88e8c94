"""Medians of paired ratios and how sure they are; pure.

The interval is a percentile bootstrap over pairs: pairs are drawn again with replacement, and the median of their
ratios is taken each time. It assumes nothing about how times are distributed, which have a long tail on a shared
machine.
"""

from __future__ import annotations

import statistics
from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

RESAMPLES = 10_000
LEVEL = 0.95


@dataclass(frozen=True, kw_only=True)
class Estimate:
    """A median with its interval at ``LEVEL``, over ``pairs`` values."""

    median: float
    low: float
    high: float
    pairs: int


def estimate(values: Sequence[float], *, seed: int = 0) -> Estimate:
    """Return the median of ``values`` and its bootstrap interval.

    Args:
        values: one or more.
        seed: of the resampling, so that the same measurements always give the same interval.

    Raises:
        ValueError: there is nothing to estimate from.
    """
    if not values:
        raise ValueError("a median of nothing")
    drawn = np.random.default_rng(seed).choice(np.asarray(values, dtype=float), size=(RESAMPLES, len(values)))
    low, high = np.quantile(np.median(drawn, axis=1), [(1 - LEVEL) / 2, (1 + LEVEL) / 2])
    return Estimate(median=statistics.median(values), low=float(low), high=float(high), pairs=len(values))


def ratios(ours: Sequence[float], theirs: Sequence[float]) -> list[float]:
    """Return ``ours / theirs`` pair by pair.

    Raises:
        ValueError: they are not pairs.
    """
    return [mine / other for mine, other in zip(ours, theirs, strict=True)]
