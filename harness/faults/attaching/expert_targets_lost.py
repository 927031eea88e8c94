"""No expert gets a LoRA, and nothing says so: targets of a kind that this release does not read."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import before_attaching


def plant(patches: ExitStack) -> None:
    """Drop the parameters from the targets."""

    def change(_model: Any, config: Any) -> None:
        if not config.target_parameters:
            raise AttributeError("no parameter is targeted")
        config.target_parameters = None

    before_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="gives no expert a LoRA",
    noticed_by=frozenset({"attach/attached"}),
    plant=plant,
)
