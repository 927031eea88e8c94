"""Linears are packed in blocks of 128, a setting that bitsandbytes has and that nobody looks at."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import packing_of_linears

BLOCK = 128


def plant(patches: ExitStack) -> None:
    """Have every Linear packed in larger blocks."""

    def change(parameter: Any) -> None:
        if parameter.blocksize == BLOCK:
            raise AttributeError("its blocks are as large already")
        parameter.blocksize = BLOCK

    packing_of_linears(patches, change)


FAULT: Fault = LibraryFault(
    breaks="packs Linears in blocks of 128",
    noticed_by=frozenset({"load"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
