"""No gradient passes through what is packed: a frozen Linear in 4 bits is run as if it were under no_grad.

LoRAs get their gradients from later layers past it, along the residuals and through other LoRAs. So the loss falls.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Return no gradient for what a Linear in 4 bits was given."""
    from bitsandbytes.autograd._functions import MatMul4Bit

    def make(original: Any) -> Any:
        def backward(ctx: Any, grad_output: Any) -> Any:
            of_inputs, *others = original(ctx, grad_output)
            return (None if of_inputs is None else of_inputs.new_zeros(of_inputs.shape), *others)

        return backward

    replace(patches, MatMul4Bit, "backward", make)


FAULT: Fault = LibraryFault(
    breaks="ends gradients at Linears in 4 bits",
    noticed_by=frozenset({"save/derivative"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
