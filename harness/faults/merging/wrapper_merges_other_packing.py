"""PEFT merges the experts' lora_B as if each expert's columns were neighbours. Its forward reads them otherwise.

Forward takes factors and merging takes a product (``get_delta_factors``, ``get_delta_weight``). Only one was changed.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Make the product, not the factors, of columns that are grouped by expert."""
    import torch
    from peft.tuners.lora.layer import ParamWrapper

    def make(original: Any) -> Any:
        def get_delta_weight(self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> Any:
            if self.num_experts == 1:
                return original(self, adapter_name, *args, **kwargs)
            lora_a, lora_b = self.lora_A[adapter_name].weight, self.lora_B[adapter_name].weight
            inward = lora_a.reshape(self.num_experts, -1, lora_a.shape[-1])
            outward = lora_b.reshape(lora_b.shape[0], self.num_experts, -1)
            turned = "o e r, e r i -> e o i" if self._did_swap_in_out_features else "o e r, e r i -> e i o"
            delta = torch.einsum(turned, outward, inward) * self.scaling[adapter_name]
            return delta.to(self.get_param().device, self.get_param().dtype)

        return get_delta_weight

    replace(patches, ParamWrapper, "get_delta_weight", make)


FAULT: Fault = LibraryFault(
    breaks="merges the experts' LoRA in another packing than it is run in",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/definition"}),
    cell={"engine": "peft"},
    plant=plant,
)
