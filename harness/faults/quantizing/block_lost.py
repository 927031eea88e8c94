"""One block of each tensor means zero, as where its scale was not written."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import codes_of_4_bits

ZEROS = 0x77
"""A byte of two codes of NF4 that mean zero."""
BYTES = 32
"""Of a block of 64 codes."""


def plant(patches: ExitStack) -> None:
    """Let the first block of everything mean zero."""

    def change(_weights: Any, codes: Any, _state: Any) -> Any:
        codes.view(-1)[:BYTES] = ZEROS
        return codes

    codes_of_4_bits(patches, change)


FAULT: Fault = LibraryFault(
    breaks="loses one block of each tensor",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
