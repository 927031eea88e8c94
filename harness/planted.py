"""What became of a fault that was planted in a cell: to be noticed is its success; pure.

Such a cell never passes. So what a reader must see is whether it was noticed, and by which checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.contract.outcomes import Outcome
from harness.contract.stages import WORKER_STAGES, StageName
from harness.faults import MergeFault, fault, fault_names
from harness.faults.fault import FaultNotPlantedError
from harness.result import CellResult

_JUDGED: frozenset[Outcome] = frozenset({"pass", "fail", "noop", "blind"})
"""What a stage ends in whose checks were made."""
_OF_MERGE: frozenset[StageName] = frozenset({"merge", "reload-merged", "compare"})
"""Stages that a fault of the merge can show in."""


@dataclass(frozen=True, kw_only=True)
class PlantedFault:
    """A planted fault.

    Attributes:
        state: ``noticed`` by all that its fault names, ``missed`` by one of them, or ``unjudged`` because the cell came
            to grief before.
        by: what has noticed it: ``stage/check`` is a check that failed, ``stage`` a stage that ended in an error.
        sentence: the same in words.
        alone: whether nothing went wrong that the fault does not account for.
    """

    state: Literal["noticed", "missed", "unjudged"]
    by: tuple[str, ...]
    sentence: str
    alone: bool


def planted_fault(result: CellResult) -> PlantedFault | None:
    """Return what became of the planted fault; None for a cell without one."""
    name = result.cell.fault
    if name is None:
        return None
    planted = fault(name) if name in fault_names() else None
    by = _noticed_by(result, of_merge=isinstance(planted, MergeFault))
    needed = planted.noticed_by if planted is not None else frozenset[str]()
    overlooked = sorted(needed - set(by))
    reasons = (stage.reason or "" for stage in result.stages.values())
    words = f"{FaultNotPlantedError.__name__}: {name} "  # a control that could not be planted is another matter
    if failed := next((why for why in reasons if why.startswith(words)), None):
        return PlantedFault(state="unjudged", by=(), sentence=failed, alone=False)
    if not by or overlooked:
        stages = sorted({name.split("/")[0] for name in overlooked} or {"compare"})
        if unjudged := [stage for stage in stages if not _was_judged(result, stage)]:
            where = f" in {result.stage}" if result.stage else ""
            words = f"{', '.join(unjudged)} judged nothing: the cell ended in {result.outcome}{where}"
            sentence = f"{name} was planted, and {words}"
            return PlantedFault(state="unjudged", by=by, sentence=sentence, alone=False)
        words = f"let through by {', '.join(overlooked) or 'every check'}"
        noticed = f", noticed by {', '.join(by)}" if by else ""
        sentence = f"{name} was planted and NOT noticed: {words}{noticed}"
        return PlantedFault(state="missed", by=by, sentence=sentence, alone=False)
    sentence = f"{name} was planted and noticed, as it must be: by {', '.join(by)}"
    # A fault of a merge shows in the compare stage alone. One of code may show anywhere.
    others = [stage for stage, found in result.stages.items() if stage != "compare" and found.result != "pass"]
    alone = not isinstance(planted, MergeFault) or not others
    return PlantedFault(state="noticed", by=by, sentence=sentence, alone=alone)


def _noticed_by(result: CellResult, *, of_merge: bool) -> tuple[str, ...]:
    """Return every check that failed and every stage that ended in an error, in order.

    Args:
        result: the cell's.
        of_merge: whether only the stages count that a fault of the merge can show in.
    """
    failed = [f"{check.stage}/{check.name}" for check in result.checks if not check.passed]
    ended = [name for name, stage in result.stages.items() if stage.result not in {*_JUDGED, "not_run"}]
    found = dict.fromkeys([*ended, *failed])
    return tuple(name for name in found if name.split("/")[0] in (_OF_MERGE if of_merge else WORKER_STAGES[:-1]))


def _was_judged(result: CellResult, stage: str) -> bool:
    found = next((it for name, it in result.stages.items() if name == stage), None)
    return found is not None and found.result in _JUDGED
