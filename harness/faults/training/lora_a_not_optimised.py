"""The optimizer is given lora_B alone. lora_A has gradients and stays where it began."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Take lora_A out of all groups of the optimizer."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def create(self: Any, *args: Any, **kwargs: Any) -> Any:
            optimizer = original(self, *args, **kwargs)
            kept = {id(weight) for name, weight in self.model.named_parameters() if ".lora_B." in name}
            for group in optimizer.param_groups:
                group["params"] = [weight for weight in group["params"] if id(weight) in kept]
            return optimizer

        return create

    replace(patches, Trainer, "create_optimizer", make)


FAULT: Fault = LibraryFault(
    breaks="gives the optimizer lora_B alone",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
