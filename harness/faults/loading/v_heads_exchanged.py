"""Two heads of one v_proj stand in each other's place, as where a fused matrix is split by a wrong order."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Exchange the first two heads of the first v_proj."""

    def change(model: Any) -> None:
        attention = parts(model, "v_proj", "head_dim")[0]
        width, weight = attention.head_dim, attention.v_proj.weight
        weight.data = weight.data[[*range(width, 2 * width), *range(width), *range(2 * width, len(weight))]]

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="exchanges two heads of one v_proj",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
