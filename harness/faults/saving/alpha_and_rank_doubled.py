"""r and lora_alpha are both doubled in the saved configuration: the scaling is right, and the rank is not the tensors'.

Of the two, a check that divides one by the other sees nothing.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import config_saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Double r and lora_alpha in what is saved."""

    def change(config: dict[str, Any]) -> None:
        config["r"] *= 2
        config["lora_alpha"] *= 2

    config_saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="doubles r and lora_alpha in the saved configuration",
    noticed_by=frozenset({"reload-adapter", "merge"}),
    during=frozenset({"save"}),
    plant=plant,
)
