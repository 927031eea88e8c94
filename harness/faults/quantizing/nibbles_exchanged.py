"""The two codes of a byte stand in each other's place, as another library packs them."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import codes_of_4_bits

CODES = 16


def plant(patches: ExitStack) -> None:
    """Exchange the halves of every byte."""

    def change(_weights: Any, codes: Any, _state: Any) -> Any:
        return codes % CODES * CODES + codes // CODES

    codes_of_4_bits(patches, change)


FAULT: Fault = LibraryFault(
    breaks="exchanges the two codes of a byte",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
