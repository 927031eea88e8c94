"""The gradient of one tensor points the other way while a trainer trains, and only then: a hook of its wrapper."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import lora_layers


def plant(patches: ExitStack) -> None:
    """Negate the gradient of the first lora_B until training has ended."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def train(self: Any, *args: Any, **kwargs: Any) -> Any:
            weight = lora_layers(self.model)[0].lora_B["default"].weight
            hook = weight.register_hook(lambda gradient: -gradient)
            try:
                return original(self, *args, **kwargs)
            finally:
                hook.remove()

        return train

    replace(patches, Trainer, "train", make)


FAULT: Fault = LibraryFault(
    breaks="negates the gradient of one tensor while training",
    noticed_by=frozenset({"train/gradient"}),
    plant=plant,
)
