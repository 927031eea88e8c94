"""The optimizer's moments are lost before each step, as where it is made anew each time."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import at_each_step


def plant(patches: ExitStack) -> None:
    """Empty the optimizer's state before each step."""

    def step(optimizer: Any, take: Any, _asked: int) -> None:
        optimizer.state.clear()
        take()

    at_each_step(patches, step)


FAULT: Fault = LibraryFault(
    breaks="loses the optimizer's state before each step",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
