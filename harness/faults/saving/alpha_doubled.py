"""lora_alpha is doubled in the saved configuration, as PEFT does when it converts an adapter that mutated its base.

The tensors are right to the last bit, so that only what is made of both can show it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import config_saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Double lora_alpha in what is saved."""

    def change(config: dict[str, Any]) -> None:
        config["lora_alpha"] *= 2

    config_saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="doubles lora_alpha in the saved configuration",
    noticed_by=frozenset({"save/definition"}),
    during=frozenset({"save"}),
    plant=plant,
)
