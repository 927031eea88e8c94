"""A frozen weight of the base changes a little with each step: an operation in place, or a moving average.

It is in no adapter, so that no saved file knows of it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import at_each_step

KEPT = 0.999


def plant(patches: ExitStack) -> None:
    """Shrink one weight of the base before each optimizer step."""
    from harness.faults.patching import after_training_begins

    norms: list[Any] = []

    def remember(trainer: Any) -> None:
        norms[:] = [weight for name, weight in trainer.model.named_parameters() if name.endswith("norm.weight")]

    def step(_optimizer: Any, take: Any, _asked: int) -> None:
        norms[-1].data.mul_(KEPT)
        take()

    after_training_begins(patches, remember)
    at_each_step(patches, step)


FAULT: Fault = LibraryFault(
    breaks="changes a frozen weight of the base while training",
    noticed_by=frozenset({"save/definition"}),
    plant=plant,
)
