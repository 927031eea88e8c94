"""From what a recipe asks for to what was merged: which kinds lost something on the way, and where; pure."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from harness.contract.funnel import FUNNEL_STEPS
from harness.contract.tensors import KINDS
from harness.report import figures
from harness.report.table import Row
from harness.result import CellResult

TITLE = "From what was asked for to what was merged"
INTRODUCTION = (
    "Modules and fused parameters of one kind that are left after each step, of the cells where some get lost. "
    "Attached: with a LoRA of the rank and scale that were asked for. Gradient: in some step, of each LoRA tensor. "
    "Moved: with a delta. Saved and reloaded: number by number. Merged: every tensor on disk that it covers is right."
)
HEAD = ("kind", "asked for", *FUNNEL_STEPS[1:])


def lines(result: CellResult) -> Iterator[tuple[tuple[str, ...], bool]]:
    """Yield a line for each kind, as ``HEAD`` has it, and whether nothing got lost."""
    for kind in KINDS:
        if (funnel := result.funnel.get(kind)) is not None:
            yield (kind, *(_count(getattr(funnel, step)) for step in FUNNEL_STEPS)), funnel.whole


def losing(rows: Sequence[Row]) -> list[Row]:
    """Return the rows of cells in which a kind lost something."""
    return [row for row in rows if any(not funnel.whole for funnel in row.result.funnel.values())]


def _count(value: int | None) -> str:
    return figures.MISSING if value is None else str(value)
