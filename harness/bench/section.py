"""What a case says in the report: goals with what was measured, tables, and notes; pure values."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field

from harness.bench.statistics import Estimate


@dataclass(frozen=True, kw_only=True)
class Goal:
    """One goal.

    Attributes:
        what: what is measured, in a few words.
        wanted: the goal in words, as ``≤ 1.1``.
        measured: the value in words; None when it could not be measured.
        reached: whether the value reaches the goal; False when there is no value.
    """

    what: str
    wanted: str
    measured: str | None
    reached: bool


@dataclass(frozen=True, kw_only=True)
class Table:
    """A table: numbers stand to the right, words to the left."""

    title: str
    head: tuple[str, ...]
    rows: tuple[tuple[str, ...], ...]


@dataclass(frozen=True, kw_only=True)
class Section:
    """One case's part of the report."""

    title: str
    how: tuple[str, ...]
    goals: tuple[Goal, ...] = ()
    tables: tuple[Table, ...] = ()
    notes: tuple[str, ...] = field(default=())


def at_most(what: str, estimate: Estimate | None, limit: float, upper: float | None = None) -> Goal:
    """Return the goal that a ratio's median is at most ``limit``, and its interval's upper end at most ``upper``."""
    wanted = f"≤ {limit:g}" + (f", interval ≤ {upper:g}" if upper is not None else "")
    if estimate is None:
        return Goal(what=what, wanted=wanted, measured=None, reached=False)
    reached = estimate.median <= limit and (upper is None or estimate.high <= upper)
    return Goal(what=what, wanted=wanted, measured=interval(estimate), reached=reached)


def at_least(what: str, estimate: Estimate | None, limit: float) -> Goal:
    """Return the goal that a ratio's median is at least ``limit``."""
    wanted = f"≥ {limit:g}"
    if estimate is None:
        return Goal(what=what, wanted=wanted, measured=None, reached=False)
    return Goal(what=what, wanted=wanted, measured=interval(estimate), reached=estimate.median >= limit)


def bounded(what: str, value: float | None, limit: float, unit: str) -> Goal:
    """Return the goal that one value is at most ``limit``, both in ``unit``."""
    wanted = f"≤ {limit:g} {unit}".rstrip()
    if value is None:
        return Goal(what=what, wanted=wanted, measured=None, reached=False)
    return Goal(what=what, wanted=wanted, measured=f"{value:.3g} {unit}".rstrip(), reached=value <= limit)


def interval(estimate: Estimate) -> str:
    """Return a ratio with its interval, as ``1.07 [1.02, 1.12]``."""
    return f"{estimate.median:.2f} [{estimate.low:.2f}, {estimate.high:.2f}]"


def seconds(values: Sequence[float]) -> str:
    """Return the median of some times with their range, as ``1.52 (1.40 to 1.91)``."""
    ordered = sorted(values)
    middle = len(ordered) // 2
    median = ordered[middle] if len(ordered) % 2 else (ordered[middle - 1] + ordered[middle]) / 2
    return f"{median:.2f} ({ordered[0]:.2f} to {ordered[-1]:.2f})"


def mebibytes(count: float) -> str:
    """Return bytes as MiB, without a unit."""
    return f"{count / 2**20:.0f}"
