"""The LoRA has dropout where none was asked for. It is at work in training alone."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_layers

RATE = 0.1


def plant(patches: ExitStack) -> None:
    """Give the LoRA of every Linear a dropout."""
    import torch

    def change(model: Any) -> None:
        for layer in lora_layers(model):
            if not hasattr(layer, "parameter_name"):
                layer.lora_dropout["default"] = torch.nn.Dropout(RATE)

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="gives the LoRA a dropout",
    noticed_by=frozenset({"train/modes"}),
    plant=plant,
)
