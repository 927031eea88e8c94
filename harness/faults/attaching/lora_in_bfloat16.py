"""LoRA weights are kept in bfloat16 where the model is in float32, so that a small step moves nothing."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_weights


def plant(patches: ExitStack) -> None:
    """Keep every LoRA weight in bfloat16."""
    import torch

    def change(model: Any) -> None:
        for _, weight in lora_weights(model):
            weight.data = weight.data.to(torch.bfloat16)

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="keeps LoRA weights in bfloat16",
    noticed_by=frozenset({"attach/attached"}),
    plant=plant,
)
