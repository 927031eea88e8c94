"""The forward reads lora_B of fused experts in the other packing than what is saved means.

Shapes and norms are right, and training goes well. Each expert has learnt another one's numbers.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Take the columns of lora_B to be grouped by expert."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(original: Any) -> Any:
        def factors(self: Any, adapter_name: str) -> Any:
            lhs, rhs, scaling = original(self, adapter_name)
            flat = self.lora_B[adapter_name].weight
            grouped = flat.reshape(flat.shape[0], self.num_experts, -1).permute(1, 0, 2)
            if grouped.shape != lhs.shape:
                raise AttributeError("the left factor is not made of lora_B")
            return grouped.to(lhs.dtype), rhs, scaling

        return factors

    replace(patches, ParamWrapper, "get_delta_factors", make)


FAULT: Fault = LibraryFault(
    breaks="reads the experts' lora_B in another packing than it is saved in",
    noticed_by=frozenset({"save/definition", "forward-paths/forward_paths"}),
    reference="unsloth#6930",
    plant=plant,
)
