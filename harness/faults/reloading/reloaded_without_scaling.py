"""The reloaded adapter has a scaling of 1: alpha and rank were read after the layers had been made."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_reloading


def plant(patches: ExitStack) -> None:
    """Set the scaling of every LoRA to 1."""

    def change(model: Any) -> None:
        from peft.tuners.lora import LoraLayer

        for module in model.modules():
            if isinstance(module, LoraLayer):
                module.scaling["default"] = 1.0

    after_reloading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="sets the scaling of the reloaded adapter to 1",
    noticed_by=frozenset({"reload-adapter/adapter_reload", "reload-adapter/definition"}),
    during=frozenset({"reload-adapter"}),
    plant=plant,
)
