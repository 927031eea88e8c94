"""How far what is right lies from what is wrong: of each check the worst clean value and its mildest control; pure.

A check that asks for one exact value has no margin.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from functools import reduce

from harness.contract.checks import CONTROL
from harness.contract.readings import is_nearer, limit_of
from harness.contract.stages import STAGES, StageName
from harness.result import CellResult, Check, ControlResult


@dataclass(kw_only=True)
class Margin:
    """A check over many cells.

    Attributes:
        name: the check.
        stage: where it is made.
        limit: what its value is held against.
        clean: what it measured where it passed.
        altered: what it measured of controls, its own and broken merges that it rejected.
    """

    name: str
    stage: StageName
    limit: str
    clean: list[float] = field(default_factory=list)
    altered: list[float] = field(default_factory=list)

    @property
    def worst(self) -> float:
        """The clean value that is nearest to being wrong."""
        return reduce(lambda one, other: other if is_nearer(one, other, self.limit) else one, self.clean)

    @property
    def mildest(self) -> float | None:
        """The control's value that is nearest to being right; None where no control measured a number."""
        return _mildest(self.altered, self.limit)


def _mildest(values: Iterable[float], limit: str) -> float | None:
    found = list(values)
    return reduce(lambda one, other: one if is_nearer(one, other, limit) else other, found) if found else None


def mildest_broken(result: CellResult, check: Check) -> ControlResult | None:
    """Return the broken merge that a check of the merge came nearest to letting through; None where it saw none."""
    found = [it for it in result.controls if check.stage == "compare" and check.name in it.values]
    limit = limit_of(check.band)
    if limit is None:
        return next(iter(found), None)
    mildest = _mildest(_numbers(it.values[check.name] for it in found), limit)
    return next((it for it in found if it.values[check.name] == mildest), None)


def margins(results: Iterable[CellResult]) -> Sequence[Margin]:
    """Return the margin of every check that has a limit, in the order in which cells make them.

    Cells whose limits differ, because their dtypes or engines do, have lines of their own.
    """
    found: dict[tuple[str, StageName, str], Margin] = {}
    for result in results:
        controls = {(check.stage, check.name): check.value for check in result.checks}
        for check in result.checks:
            limit = limit_of(check.band)
            if check.name.startswith(CONTROL) or not check.passed or limit is None:
                continue
            key = (check.name, check.stage, limit)
            margin = found.setdefault(key, Margin(name=check.name, stage=check.stage, limit=limit))
            broken = (
                it.values[check.name] for it in result.controls if check.stage == "compare" and check.name in it.values
            )
            margin.clean += _numbers([check.value])
            margin.altered += _numbers([controls.get((check.stage, f"{CONTROL}{check.name}")), *broken])
    measured = (margin for margin in found.values() if margin.clean)
    return sorted(measured, key=lambda margin: STAGES.index(margin.stage))


def _numbers(values: Iterable[float | str | None]) -> list[float]:
    return [float(value) for value in values if isinstance(value, int | float)]
