"""LoRA weights are kept in float16, so that squares of their gradients underflow in the optimizer."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_weights


def plant(patches: ExitStack) -> None:
    """Keep every LoRA weight in float16."""

    def change(model: Any) -> None:
        for _, weight in lora_weights(model):
            weight.data = weight.data.half()

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="keeps LoRA weights in float16",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
