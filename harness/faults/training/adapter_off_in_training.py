"""The LoRA is switched off while a step is computed: a block that was left by an error, and not by its end."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Compute every training step without the adapter."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def training_step(self: Any, model: Any, *args: Any, **kwargs: Any) -> Any:
            with model.disable_adapter():
                return original(self, model, *args, **kwargs)

        return training_step

    replace(patches, Trainer, "training_step", make)


FAULT: Fault = LibraryFault(
    breaks="switches the LoRA off while it is trained",
    noticed_by=frozenset({"train"}),
    plant=plant,
)
