"""The scales of all blocks are a hundredth too large: scales that are rounded up, or counted by another step.

Each weight is hardly further from the original than the nearest code. All of them are further out.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import codes_of_4_bits

LARGER = 1.01


def plant(patches: ExitStack) -> None:
    """Enlarge the scales, which are themselves codes with a scale and an offset."""

    def change(_weights: Any, codes: Any, state: Any) -> Any:
        if not state.nested:
            raise AttributeError("its scales are not codes")
        state.offset, state.state2.absmax = LARGER * state.offset, LARGER * state.state2.absmax
        return codes

    codes_of_4_bits(patches, change)


FAULT: Fault = LibraryFault(
    breaks="makes the scales of blocks a hundredth larger",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
