"""Training ends with the weights that it began with."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import lora_weights


def plant(patches: ExitStack) -> None:
    """Put back what LoRA weights were, when training has ended."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def train(self: Any, *args: Any, **kwargs: Any) -> Any:
            before = [(weight, weight.detach().clone()) for _, weight in lora_weights(self.model)]
            outcome = original(self, *args, **kwargs)
            for weight, values in before:
                weight.data.copy_(values)
            return outcome

        return train

    replace(patches, Trainer, "train", make)


FAULT: Fault = LibraryFault(
    breaks="ends training with the weights that it began with",
    noticed_by=frozenset({"train/loss", "compare/signal"}),
    plant=plant,
)
