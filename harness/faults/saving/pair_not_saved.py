"""One lora pair is not saved: a state dict that was gathered from the ranks that had answered in time."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave out the pair whose name comes last."""

    def change(_model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        pair = max(tensors).partition(".lora_")[0]
        return {key: tensor for key, tensor in tensors.items() if not key.startswith(f"{pair}.lora_")}

    saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="saves all lora pairs but one",
    noticed_by=frozenset({"save/attached"}),
    during=frozenset({"save"}),
    plant=plant,
)
