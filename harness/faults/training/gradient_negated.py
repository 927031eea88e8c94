"""The gradient of one tensor points the other way, from a backward with a sign too many.

Its weights move by it as they should. The loss falls by the others.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_layers


def plant(patches: ExitStack) -> None:
    """Negate the gradient of the first lora_B."""

    def change(model: Any) -> None:
        lora_layers(model)[0].lora_B["default"].weight.register_hook(lambda gradient: -gradient)

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="negates the gradient of one tensor",
    noticed_by=frozenset({"save/derivative"}),
    plant=plant,
)
