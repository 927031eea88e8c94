"""Products with Linears in 4 bits are a twentieth too large. The codes are right, and so is what they decode to."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

OFF = 1.05


def plant(patches: ExitStack) -> None:
    """Scale what the kernel returns."""
    import bitsandbytes

    def make(original: Any) -> Any:
        def matmul(*args: Any, **kwargs: Any) -> Any:
            return OFF * original(*args, **kwargs)

        return matmul

    replace(patches, bitsandbytes, "matmul_4bit", make)


FAULT: Fault = LibraryFault(
    breaks="makes products with Linears in 4 bits larger",
    noticed_by=frozenset({"load/definition"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
