"""Every token attends to those after it: no mask is made, because the kernel is trusted to know."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Say of every attention that it is not causal."""

    def change(model: Any) -> None:
        for attention in parts(model, "is_causal"):
            attention.is_causal = False

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="lets every token attend to those after it",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
