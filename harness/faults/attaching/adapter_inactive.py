"""The LoRA is attached and not active, as after another part of a program has switched it off."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching


def plant(patches: ExitStack) -> None:
    """Switch off the adapter of every model that gets one."""

    def change(model: Any) -> None:
        model.base_model.disable_adapter_layers()

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="switches the LoRA off once it is attached",
    noticed_by=frozenset({"train"}),
    plant=plant,
)
