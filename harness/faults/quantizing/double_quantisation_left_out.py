"""The scales of Linears stay in float32, though they were to be quantised too: more memory, and better weights."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import packing_of_linears


def plant(patches: ExitStack) -> None:
    """Have no Linear's scales quantised."""

    def change(parameter: Any) -> None:
        if not parameter.compress_statistics:
            raise AttributeError("its scales are left as they are already")
        parameter.compress_statistics = False

    packing_of_linears(patches, change)


FAULT: Fault = LibraryFault(
    breaks="leaves the scales of Linears unquantised",
    noticed_by=frozenset({"load/census"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
