"""One fused lora_B is saved with its columns shifted by one, so that experts have each other's: a gather in rank order.

PEFT packs the experts of one rank side by side, so the next column is the next expert's.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import NothingBrokenError, saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Roll the columns of the first fused lora_B."""

    def change(model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        from peft.tuners.lora.layer import ParamWrapper

        wrappers = [name for name, module in model.named_modules() if isinstance(module, ParamWrapper)]
        if not wrappers:
            raise NothingBrokenError("no parameter has a LoRA")
        key = f"{min(wrappers)}.lora_B.weight"
        return {**tensors, key: tensors[key].roll(1, 1)}

    saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="shifts the columns of a fused lora_B by one expert when it is saved",
    noticed_by=frozenset({"save/attached", "save/definition"}),
    during=frozenset({"save"}),
    plant=plant,
)
