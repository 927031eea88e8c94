"""The LoRA is applied to the first half of the experts alone. unsloth-zoo#606 saw half of them get no gradient.

The tensors that hold all experts do get one.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Zero the factors of the second half of the experts, where they are applied."""
    import torch

    def make(original: Any) -> Any:
        def factors(self: Any, adapter_name: str) -> Any:
            lhs, rhs, scaling = original(self, adapter_name)
            first = torch.arange(self.num_experts) < self.num_experts // 2
            return lhs * first.view(-1, 1, 1).to(lhs.dtype), rhs, scaling

        return factors

    from peft.tuners.lora.layer import ParamWrapper

    replace(patches, ParamWrapper, "get_delta_factors", make)


FAULT: Fault = LibraryFault(
    breaks="applies the LoRA to half of the experts",
    noticed_by=frozenset({"forward-paths/forward_paths", "compare/coverage"}),
    reference="unsloth-zoo#606",
    plant=plant,
)
