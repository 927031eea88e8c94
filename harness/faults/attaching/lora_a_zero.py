"""lora_A starts at zero like lora_B, so that neither ever has a gradient. Nothing fails, and nothing is learnt."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Zero every new lora_A."""
    from peft.tuners.lora.layer import LoraLayer

    def make(original: Any) -> Any:
        def reset(self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
            original(self, adapter_name, *args, **kwargs)
            self.lora_A[adapter_name].weight.data.zero_()

        return reset

    replace(patches, LoraLayer, "reset_lora_parameters", make)


FAULT: Fault = LibraryFault(
    breaks="starts lora_A at zero",
    noticed_by=frozenset({"train/gradients"}),
    plant=plant,
)
