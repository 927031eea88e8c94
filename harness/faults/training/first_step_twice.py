"""The first optimizer step is taken twice on one gradient, as by a wrapper around a wrapper."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import at_each_step


def plant(patches: ExitStack) -> None:
    """Take the first step twice."""

    def step(_optimizer: Any, take: Any, asked: int) -> None:
        take()
        if asked == 0:
            take()

    at_each_step(patches, step)


FAULT: Fault = LibraryFault(
    breaks="takes the first optimizer step twice",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
