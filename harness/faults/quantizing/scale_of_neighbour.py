"""Each block is decoded by the scale of the one before it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import codes_of_4_bits


def plant(patches: ExitStack) -> None:
    """Move all scales on by one block."""

    def change(_weights: Any, codes: Any, state: Any) -> Any:
        state.absmax = state.absmax.roll(1)
        return codes

    codes_of_4_bits(patches, change)


FAULT: Fault = LibraryFault(
    breaks="decodes each block by its neighbour's scale",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
