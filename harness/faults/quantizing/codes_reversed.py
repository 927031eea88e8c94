"""Codes of 4 bits count from the other end: a table that another library lists from its largest value on."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import codes_of_4_bits

LARGEST_BYTE = 255


def plant(patches: ExitStack) -> None:
    """Turn every code around."""

    def change(_weights: Any, codes: Any, _state: Any) -> Any:
        return LARGEST_BYTE - codes

    codes_of_4_bits(patches, change)


FAULT: Fault = LibraryFault(
    breaks="counts codes of 4 bits from the other end",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
