"""Linears are packed in FP4 where NF4 was asked for: the default of bitsandbytes' own classes."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import packing_of_linears

CODE = "fp4"


def plant(patches: ExitStack) -> None:
    """Have every Linear packed in the other code."""

    def change(parameter: Any) -> None:
        if parameter.quant_type == CODE:
            raise AttributeError("its code is that already")
        parameter.quant_type = CODE

    packing_of_linears(patches, change)


FAULT: Fault = LibraryFault(
    breaks="packs Linears in FP4",
    noticed_by=frozenset({"load/census"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
