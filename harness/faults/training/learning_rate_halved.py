"""The optimizer gets half of the learning rate that was asked for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import optimizer_options


def plant(patches: ExitStack) -> None:
    """Halve the learning rate."""

    def change(options: dict[str, Any]) -> None:
        options["lr"] /= 2

    optimizer_options(patches, change)


FAULT: Fault = LibraryFault(
    breaks="halves the learning rate",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
