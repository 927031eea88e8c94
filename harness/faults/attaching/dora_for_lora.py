"""Magnitudes are trained beside the LoRA, which nobody asked for. What is saved has more than pairs of A and B."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import before_attaching


def plant(patches: ExitStack) -> None:
    """Ask for DoRA."""

    def change(_model: Any, config: Any) -> None:
        config.use_dora = True

    before_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="attaches DoRA where LoRA was asked for",
    noticed_by=frozenset({"attach/attached"}),
    cell={"recipe": "lora-attention"},
    plant=plant,
)
