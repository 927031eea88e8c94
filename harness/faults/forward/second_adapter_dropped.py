"""Of several active adapters one is put before the experts' parameters: where that of one alone is a shorter way."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Take the first of the active adapters."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(original: Any) -> Any:
        def activate(self: Any, active_adapters: list[str]) -> Any:
            return original(self, active_adapters[:1])

        return activate

    replace(patches, ParamWrapper, "_activate_lora", make)


FAULT: Fault = LibraryFault(
    breaks="applies only the first of several adapters to the experts",
    noticed_by=frozenset({"train/gradients"}),
    cell={"recipe": "lora-two-expert-adapters"},
    plant=plant,
)
