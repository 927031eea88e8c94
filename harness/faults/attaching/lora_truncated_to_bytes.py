"""LoRA weights pass through unsigned bytes, the dtype that packed experts were thought to have.

Numbers below one become zero, and stay it, because both factors are.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_weights


def plant(patches: ExitStack) -> None:
    """Cut every LoRA weight to whole numbers."""

    def change(model: Any) -> None:
        for _, weight in lora_weights(model):
            weight.data = weight.data.byte().to(weight.dtype)

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="cuts LoRA weights to bytes when they are attached",
    noticed_by=frozenset({"train/gradients"}),
    reference="unsloth-zoo#527",
    plant=plant,
)
