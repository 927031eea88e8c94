"""A step that is taken in several batches keeps the gradient of the last alone.

Gradients are set to none before each backward pass, and not before each step.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Forget gradients before each batch."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            for weight in model.parameters():
                weight.grad = None
            return original(self, model, *args, **kwargs)

        return training_step

    replace(patches, Trainer, "training_step", make)


FAULT: Fault = LibraryFault(
    breaks="takes steps by the gradient of their last batch alone",
    noticed_by=frozenset({"train/gradient"}),
    cell={"recipe": "lora-checkpointing"},
    plant=plant,
)
