"""r is doubled in the saved configuration, and the tensors have the rank that they were trained with.

PEFT then makes a LoRA that the tensors do not fit.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import config_saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Double r in what is saved."""

    def change(config: dict[str, Any]) -> None:
        config["r"] *= 2

    config_saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="doubles r in the saved configuration",
    noticed_by=frozenset({"reload-adapter", "merge"}),
    during=frozenset({"save"}),
    plant=plant,
)
