"""lora_B shrinks a little after each step: a callback that averages or decays weights. No step is to blame."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

KEPT = 0.9


def plant(patches: ExitStack) -> None:
    """Shrink every lora_B when a step has ended."""
    from transformers.trainer_callback import CallbackHandler

    from harness.faults.places import lora_weights

    def make(original: Any) -> Any:
        def on_step_end(self: Any, *args: Any, **kwargs: Any) -> Any:
            for name, weight in lora_weights(self.model):
                if ".lora_B." in name:
                    weight.data.mul_(KEPT)
            return original(self, *args, **kwargs)

        return on_step_end

    replace(patches, CallbackHandler, "on_step_end", make)


FAULT: Fault = LibraryFault(
    breaks="shrinks weights between steps",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
