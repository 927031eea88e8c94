"""The saved configuration excludes a module that was trained, as it stood in the configuration of another run.

Whoever reloads the adapter attaches no LoRA there. The tensors in the file match nothing, and nobody says so.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import config_saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Write exclude_modules."""

    def change(config: dict[str, Any]) -> None:
        config["exclude_modules"] = ["o_proj"]

    config_saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="excludes o_proj in the saved configuration",
    noticed_by=frozenset({"reload-adapter/adapter_reload", "reload-adapter/definition"}),
    plant=plant,
)
