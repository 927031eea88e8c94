"""Fused lora_B tensors are read expert by expert, where PEFT packs them rank by rank: same shapes, the wrong experts.

unsloth packed them so and PEFT reads them otherwise, in either direction (unsloth#6930).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_reloading


def plant(patches: ExitStack) -> None:
    """Permute the columns of every fused lora_B from one packing to the other."""

    def change(model: Any) -> None:
        from peft.tuners.lora.layer import ParamWrapper

        for module in model.modules():
            if isinstance(module, ParamWrapper):
                weight = module.lora_B["default"].weight
                by_rank = weight.data.reshape(len(weight), -1, module.num_experts)
                weight.data = by_rank.mT.reshape(len(weight), -1).contiguous()

    after_reloading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="reads lora_B of experts in the other packing",
    noticed_by=frozenset({"reload-adapter/adapter_reload", "reload-adapter/definition"}),
    during=frozenset({"reload-adapter"}),
    plant=plant,
    reference="unsloth#6930",
)
