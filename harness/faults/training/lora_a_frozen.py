"""lora_A is frozen, which is a way to save memory that nobody asked for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_weights


def plant(patches: ExitStack) -> None:
    """Freeze every lora_A."""

    def change(model: Any) -> None:
        for name, weight in lora_weights(model):
            weight.requires_grad_(".lora_B." in name)

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="freezes lora_A",
    noticed_by=frozenset({"train/gradients"}),
    plant=plant,
)
