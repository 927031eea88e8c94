"""lora_B starts at small numbers, not at zero, so that the first step begins from another model than the base."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

STD = 0.02


def plant(patches: ExitStack) -> None:
    """Fill every new lora_B."""
    from peft.tuners.lora.layer import LoraLayer

    def make(original: Any) -> Any:
        def reset(self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
            original(self, adapter_name, *args, **kwargs)
            self.lora_B[adapter_name].weight.data.normal_(std=STD)

        return reset

    replace(patches, LoraLayer, "reset_lora_parameters", make)


FAULT: Fault = LibraryFault(
    breaks="starts lora_B at small numbers",
    noticed_by=frozenset({"train/unchanged"}),
    plant=plant,
)
