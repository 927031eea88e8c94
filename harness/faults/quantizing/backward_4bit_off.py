"""Products with Linears in 4 bits are right, and the gradients that they hand back a twentieth too large."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

OFF = 1.05


def plant(patches: ExitStack) -> None:
    """Scale what the kernel's backward returns for its input."""
    from bitsandbytes.autograd import _functions as functions

    def make(original: Any) -> Any:
        def backward(ctx: Any, grad_output: Any) -> Any:
            gradient, *others = original(ctx, grad_output)
            return (OFF * gradient, *others)

        return backward

    replace(patches, functions.MatMul4Bit, "backward", make)


FAULT: Fault = LibraryFault(
    breaks="makes gradients through Linears in 4 bits larger",
    noticed_by=frozenset({"save/derivative"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
