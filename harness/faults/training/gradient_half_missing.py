"""Half of the experts give one tensor no gradient, from a backward that loops over too few of them.

The tensor has one, and what there is of it is right.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_layers


def plant(patches: ExitStack) -> None:
    """Drop the second half of the gradient of one lora_A of fused experts, by its rows."""
    import torch

    def change(model: Any) -> None:
        layer = next(layer for layer in lora_layers(model) if hasattr(layer, "parameter_name"))
        weight = layer.lora_A["default"].weight
        first = (torch.arange(len(weight)) < len(weight) // 2).unsqueeze(1)
        weight.register_hook(lambda gradient: gradient * first)

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="drops half of the gradient of one tensor",
    noticed_by=frozenset({"train/gradient"}),
    plant=plant,
)
