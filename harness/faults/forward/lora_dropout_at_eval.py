"""The LoRA's dropout drops in evaluation too, and was not asked for at all."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_layers

RATE = 0.1


def plant(patches: ExitStack) -> None:
    """Give the LoRA of every Linear a dropout that never rests."""
    import torch

    class Restless(torch.nn.Module):  # type: ignore[misc]  # torch is untyped on the host
        def forward(self, x: Any) -> Any:
            return torch.nn.functional.dropout(x, RATE, training=True)

    def change(model: Any) -> None:
        for layer in lora_layers(model):
            if not hasattr(layer, "parameter_name"):
                layer.lora_dropout["default"] = Restless()

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="keeps a dropout at work in evaluation",
    noticed_by=frozenset({"train/modes", "save/definition"}),
    plant=plant,
)
