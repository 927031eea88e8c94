"""The adapter that was to stay as it is is trained beside the second: making both active thawed it.

``set_adapter`` of several adapters makes all of them trainable.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_training_begins
from harness.faults.places import lora_weights


def plant(patches: ExitStack) -> None:
    """Thaw every LoRA before the optimizer is made."""

    def change(trainer: Any) -> None:
        for _, weight in lora_weights(trainer.model):
            weight.requires_grad_()

    after_training_begins(patches, change)


FAULT: Fault = LibraryFault(
    breaks="trains the earlier adapter too",
    noticed_by=frozenset({"train/gradient", "save/attached"}),
    cell={"recipe": "lora-two-adapters"},
    plant=plant,
)
