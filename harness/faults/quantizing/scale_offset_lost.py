"""Scales that are codes are decoded without the offset that was taken off them, their mean."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import codes_of_4_bits


def plant(patches: ExitStack) -> None:
    """Lose the offset of every tensor's scales."""

    def change(_weights: Any, codes: Any, state: Any) -> Any:
        state.offset = state.offset * 0
        return codes

    codes_of_4_bits(patches, change)


FAULT: Fault = LibraryFault(
    breaks="loses the offset of double quantised scales",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
