"""Every second optimizer step is not taken, and counted, as by a gradient scaler that finds overflows."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import at_each_step


def plant(patches: ExitStack) -> None:
    """Take every second step."""

    def step(_optimizer: Any, take: Any, asked: int) -> None:
        if asked % 2 == 0:
            take()

    at_each_step(patches, step)


FAULT: Fault = LibraryFault(
    breaks="skips every second optimizer step",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
