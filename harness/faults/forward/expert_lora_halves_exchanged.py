"""The LoRA of the experts' gate is added to up, and that of up to gate, where both are one parameter."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

BOTH = "gate_up_proj"


def plant(patches: ExitStack) -> None:
    """Exchange the halves of the left factor of gate and up."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(original: Any) -> Any:
        def factors(self: Any, adapter_name: str) -> Any:
            lhs, rhs, scaling = original(self, adapter_name)
            if self.parameter_name == BOTH:
                lhs = lhs.roll(lhs.shape[1] // 2, dims=1)
            return lhs, rhs, scaling

        return factors

    replace(patches, ParamWrapper, "get_delta_factors", make)


FAULT: Fault = LibraryFault(
    breaks="adds the LoRA of the experts' gate to up, and the other way round",
    noticed_by=frozenset({"save/definition", "forward-paths/forward_paths"}),
    plant=plant,
)
