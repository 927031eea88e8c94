"""Two layers have each other's experts: an index that is counted from another layer on."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Exchange gate and up of the first two layers that have experts."""

    def change(model: Any) -> None:
        first, second, *_ = parts(model, "gate_up_proj", "down_proj", "num_experts")
        first.gate_up_proj.data, second.gate_up_proj.data = second.gate_up_proj.data, first.gate_up_proj.data

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="exchanges the experts' gates of two layers",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
