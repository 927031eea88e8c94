"""The adapter is loaded and not active, as after ``load_adapter`` under another name, without ``set_adapter``."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_reloading


def plant(patches: ExitStack) -> None:
    """Disable the LoRA of the reloaded model."""

    def change(model: Any) -> None:
        model.base_model.disable_adapter_layers()

    after_reloading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="leaves the reloaded adapter disabled",
    noticed_by=frozenset({"reload-adapter/adapter_reload", "reload-adapter/definition"}),
    during=frozenset({"reload-adapter"}),
    plant=plant,
)
