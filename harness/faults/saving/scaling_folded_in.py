"""lora_B is saved times the scaling, and lora_alpha as it was: an exporter for runtimes that know no scaling.

Whoever follows the configuration scales twice.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Multiply lora_B by alpha / r."""

    def change(model: Any, tensors: dict[str, Any]) -> dict[str, Any]:
        config = model.peft_config["default"]
        scaling = config.lora_alpha / config.r
        return {key: scaling * tensor if ".lora_B." in key else tensor for key, tensor in tensors.items()}

    saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="saves lora_B times the scaling",
    noticed_by=frozenset({"save/attached", "save/definition"}),
    during=frozenset({"save"}),
    plant=plant,
)
