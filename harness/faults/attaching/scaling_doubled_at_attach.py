"""The LoRA in memory has twice the scaling that its configuration says, and that is saved."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_layers


def plant(patches: ExitStack) -> None:
    """Double the scaling of every layer."""

    def change(model: Any) -> None:
        for layer in lora_layers(model):
            layer.scaling["default"] *= 2

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="doubles the LoRA's scaling and not what its configuration says",
    noticed_by=frozenset({"save/definition"}),
    plant=plant,
)
