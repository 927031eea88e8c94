"""No gradient reaches the LoRA of the experts' down_proj: a backward that returns nothing for it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_layers

DROPPED = "down_proj"


def plant(patches: ExitStack) -> None:
    """Zero all gradients of the LoRA of one parameter."""
    import torch

    def change(model: Any) -> None:
        layers = [layer for layer in lora_layers(model) if getattr(layer, "parameter_name", None) == DROPPED]
        for layer in layers:
            for factor in (layer.lora_A, layer.lora_B):
                factor["default"].weight.register_hook(torch.zeros_like)
        if not layers:
            raise AttributeError(f"{DROPPED} has no LoRA")

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="drops the gradients of the experts' down_proj",
    noticed_by=frozenset({"train/gradients"}),
    reference="unsloth-zoo#606",
    plant=plant,
)
