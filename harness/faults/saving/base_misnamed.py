"""The saved configuration names another base than the one that was trained on.

unsloth names a checkpoint in 4 bits where the original was given, or the reverse. Whoever loads by that name puts the
adapter onto other weights.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import config_saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Name another base in what is saved."""

    def change(config: dict[str, Any]) -> None:
        config["base_model_name_or_path"] += "-bnb-4bit"

    config_saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="names another base in the saved configuration",
    noticed_by=frozenset({"save/attached"}),
    during=frozenset({"save"}),
    plant=plant,
)
