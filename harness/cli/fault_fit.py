"""Whether a fault that ``harness run --fault`` asks for is one in its cell: told before anything is run, or afterwards.

With one expert a wrong packing is a right one, and what a release has not cannot be patched. That is a mistake of the
command line and says nothing of the stack.
"""

from __future__ import annotations

import re
from collections.abc import Callable, Iterator
from itertools import product
from pathlib import Path

from harness.errors import ConfigurationError
from harness.faults import Facts, MergeFault, fault
from harness.faults.fault import FaultNotPlantedError
from harness.matrix.catalogue import RecipeFacts
from harness.matrix.cell import Cell
from harness.result import CellResult

USUAL = {"family": "qwen3_moe", "recipe": "lora"}
"""The cell that a fault is planted in unless it names another."""
_NO_FAULT = "FaultDoesNotApplyError"
"""What the worker raises where a fault would be a right merge (``harness.worker.stages.planting``)."""
_SOME = (2, 8, 128)
"""Numbers of experts and ranks that a cell may have: which it has is known only afterwards."""


def refuse_where_it_is_none(cell: Cell, recipe: RecipeFacts) -> None:
    """Refuse a fault of a merge that can be none in this cell, whatever its adapter comes to.

    Raises:
        ConfigurationError: it would be a right merge.
    """
    planted = fault(cell.fault) if cell.fault is not None else None
    if isinstance(planted, MergeFault) and not any(map(planted.applies, _possible(cell, recipe))):
        raise _no_fault(cell)


def refuse_what_was_none(result: CellResult) -> None:
    """Refuse afterwards what only the cell could show: its fault was none there, or its stack has nothing to break.

    Raises:
        ConfigurationError: the fault was not planted.
    """
    name = result.cell.fault
    for stage, ended in result.stages.items() if name is not None else ():
        words = ended.reason or ""
        if words.startswith(f"{_NO_FAULT}: "):
            raise _no_fault(result.cell)
        if found := re.match(rf"{FaultNotPlantedError.__name__}: (.*?)(?: \[|, because of |$)", words, re.DOTALL):
            raise ConfigurationError(f"--fault {found[1]} (in {stage}).", remedy=_where(result.cell))


def refusing(path: Path) -> Callable[[CellResult], None]:
    """Return what refuses a result whose fault was none there (:func:`refuse_what_was_none`), and removes its file.

    It would be a row of every report that is made of its directory.
    """

    def check(result: CellResult) -> None:
        try:
            refuse_what_was_none(result)
        except ConfigurationError:
            path.unlink(missing_ok=True)
            raise

    return check


def elsewhere(cell: Cell) -> Iterator[str]:
    """Yield a sentence where the fault is meant for another cell than this one."""
    if cell.fault is None:
        return
    meant = {key: value for key, value in fault(cell.fault).cell.items() if key != "stack"}
    if any(str(getattr(cell, key)) != value for key, value in meant.items()):
        yield f"{cell.fault} is meant for {_options(meant)}: elsewhere there may be nothing for it to break."


def _possible(cell: Cell, recipe: RecipeFacts) -> Iterator[Facts]:
    """Yield what the facts of a cell can come to, by what is known of it before it runs."""
    fused = "expert" in recipe.kinds
    experts = ((1,) if cell.geometry == "single" else _SOME) if fused else (None,)
    layouts = ("standard", "swapped") if fused else (None,)
    packings = ("rank_major", "grouped_by_expert") if fused else (None,)
    for number, rank, layout, packing in product(experts, _SOME, layouts, packings):
        yield Facts(
            dtype=cell.dtype,
            quantized=recipe.quantized,
            num_experts=number,
            rank=rank,
            io_layout=layout,
            b_packing=packing,
        )


def _no_fault(cell: Cell) -> ConfigurationError:
    return ConfigurationError(
        f"--fault {cell.fault} would break nothing in {cell.model_copy(update={'fault': None}).id}: its merge would be "
        "a right one.",
        remedy=_where(cell),
    )


def _where(cell: Cell) -> str:
    """Say where a fault is one."""
    name = str(cell.fault)
    planted = fault(name)
    meant = {**USUAL, **{key: value for key, value in planted.cell.items() if key != "stack"}}
    stack = planted.cell.get("stack", "the newest declared stack")
    return (
        f"Plant it where it breaks something: `harness faults --select {name}` does, with {_options(meant)} on {stack}."
    )


def _options(fields: dict[str, str]) -> str:
    """Return the options of ``harness run`` that ask for these fields of a cell."""
    return " ".join(f"--{'model' if key == 'family' else key.replace('_', '-')} {it}" for key, it in fields.items())
