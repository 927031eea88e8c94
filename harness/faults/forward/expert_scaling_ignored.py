"""The experts' LoRA is applied without its scaling, which its delta and its configuration have."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Apply the factors of a wrapped parameter as they are."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(original: Any) -> Any:
        def factors(self: Any, adapter_name: str) -> Any:
            lhs, rhs, _ = original(self, adapter_name)
            return lhs, rhs, 1.0

        return factors

    replace(patches, ParamWrapper, "get_delta_factors", make)


FAULT: Fault = LibraryFault(
    breaks="applies the experts' LoRA without its scaling",
    noticed_by=frozenset({"save/definition"}),
    plant=plant,
)
