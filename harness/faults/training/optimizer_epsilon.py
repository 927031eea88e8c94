"""The optimizer adds a hundred times the epsilon under its steps: a default of other libraries."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import optimizer_options

TIMES = 100


def plant(patches: ExitStack) -> None:
    """Enlarge the epsilon."""

    def change(options: dict[str, Any]) -> None:
        options["eps"] *= TIMES

    optimizer_options(patches, change)


FAULT: Fault = LibraryFault(
    breaks="enlarges the optimizer's epsilon",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
