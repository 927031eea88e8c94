"""The saved configuration does not name the fused parameters, as one written by a release that knows none.

Who loads the adapter makes a LoRA on Linears alone, and PEFT passes over the tensors of experts with a warning at most.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import config_saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave target_parameters out of what is saved."""

    def change(config: dict[str, Any]) -> None:
        config["target_parameters"] = None

    config_saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="leaves target_parameters out of the saved configuration",
    noticed_by=frozenset({"reload-adapter/adapter_reload", "reload-adapter/definition"}),
    during=frozenset({"save"}),
    plant=plant,
)
