"""lora_A is saved as lora_B, and the reverse: written by a converter from a format that counts them the other way."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import saved_as
from harness.faults.fault import Fault, LibraryFault

OTHER = {".lora_A.": ".lora_B.", ".lora_B.": ".lora_A."}


def plant(patches: ExitStack) -> None:
    """Exchange the names of lora_A and lora_B."""

    def change(_model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        return {
            key.replace(part, other): tensor
            for key, tensor in tensors.items()
            for part, other in OTHER.items()
            if part in key
        }

    saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="saves lora_A and lora_B by each other's names",
    noticed_by=frozenset({"save/attached"}),
    during=frozenset({"save"}),
    plant=plant,
)
