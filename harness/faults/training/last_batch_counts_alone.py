"""Of the batches that are to make up a step only the last counts: gradients are cleared before each backward pass.

So half of the sequences are never learnt from. The losses that are logged are those of all.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Clear the gradients of what is optimised before each backward pass."""
    from accelerate import Accelerator

    def make(original: Any) -> Any:
        def backward(self: Any, loss: Any, **kwargs: Any) -> None:
            for optimizer in self._optimizers:
                for group in optimizer.optimizer.param_groups:
                    for weight in group["params"]:
                        weight.grad = None
            original(self, loss, **kwargs)

        return backward

    replace(patches, Accelerator, "backward", make)


FAULT: Fault = LibraryFault(
    breaks="lets only the last batch of a step count",
    noticed_by=frozenset({"train/gradient"}),
    cell={"recipe": "lora-checkpointing"},
    plant=plant,
)
