"""Biases stay as they are where they were to be trained: a loop that freezes whatever is no LoRA."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching


def plant(patches: ExitStack) -> None:
    """Freeze every parameter of a PEFT model that is no LoRA's."""

    def change(model: Any) -> None:
        for name, parameter in model.named_parameters():
            parameter.requires_grad_(".lora_" in name)

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="freezes the biases that were to be trained",
    noticed_by=frozenset({"attach/attached"}),
    cell={"family": "glm4_moe", "recipe": "lora-bias"},
    plant=plant,
)
