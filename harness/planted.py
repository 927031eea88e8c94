"""What became of a fault that was planted in a cell's own merge: to be rejected is its success; pure.

Such a cell never passes. So what a reader must see is whether the gates noticed, and by which checks.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from harness.contract.outcomes import Outcome
from harness.faults import fault, fault_names
from harness.result import CellResult

_JUDGED: frozenset[Outcome] = frozenset({"pass", "fail", "noop", "blind"})
"""What the compare stage ends in when the gates have judged the merge."""


@dataclass(frozen=True, kw_only=True)
class PlantedFault:
    """A planted fault.

    Attributes:
        state: ``noticed`` by all checks that its fault names, ``missed`` by one of them, or ``unjudged`` because the
            cell came to grief before the gates.
        sentence: the same in words, with the checks.
        alone: whether nothing else went wrong in the cell.
    """

    state: Literal["noticed", "missed", "unjudged"]
    sentence: str
    alone: bool


def planted_fault(result: CellResult) -> PlantedFault | None:
    """Return what became of the planted fault; None for a cell without one."""
    name = result.cell.fault
    if name is None:
        return None
    compare = result.stages.get("compare")
    others = [stage for key, stage in result.stages.items() if key != "compare" and stage.result != "pass"]
    if compare is None or compare.result not in _JUDGED:
        sentence = f"{name} was planted, and no gate has judged it: the cell ended in {result.outcome}"
        return PlantedFault(state="unjudged", sentence=sentence, alone=False)
    checks = [check for check in result.checks if check.stage == "compare"]
    by = list(dict.fromkeys(check.name for check in checks if not check.passed))
    needed = fault(name).noticed_by if name in fault_names() else frozenset[str]()
    overlooked = sorted(needed - set(by))
    if not by or overlooked:
        words = f"let through by {', '.join(overlooked) or 'every check'}"
        noticed = f", rejected by {', '.join(by)}" if by else ""
        sentence = f"{name} was planted and NOT noticed: {words}{noticed}"
        return PlantedFault(state="missed", sentence=sentence, alone=False)
    sentence = f"{name} was planted and noticed, as it must be: rejected by {', '.join(by)}"
    return PlantedFault(state="noticed", sentence=sentence, alone=not others)
