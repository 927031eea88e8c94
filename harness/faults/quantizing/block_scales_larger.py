"""The scales of all blocks are half as large again as their largest weights."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import codes_of_4_bits

LARGER = 1.5


def plant(patches: ExitStack) -> None:
    """Enlarge the scales, which are themselves codes with a scale and an offset."""

    def change(_weights: Any, codes: Any, state: Any) -> Any:
        if state.nested:
            state.offset, state.state2.absmax = LARGER * state.offset, LARGER * state.state2.absmax
        else:
            state.absmax = LARGER * state.absmax
        return codes

    codes_of_4_bits(patches, change)


FAULT: Fault = LibraryFault(
    breaks="makes the scales of blocks half as large again",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
