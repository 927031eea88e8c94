"""Attention scores are divided by the width of a head, not by its root."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Give every attention the smaller scale."""

    def change(model: Any) -> None:
        for attention in parts(model, "scaling", "head_dim"):
            attention.scaling = 1 / attention.head_dim

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="divides attention scores by the width of a head",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
