"""The load-balancing loss counts twice as much as the configuration says."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_training_begins


def plant(patches: ExitStack) -> None:
    """Double the coefficient that a trainer has read."""

    def change(trainer: Any) -> None:
        if not trainer.router_aux_loss_coef:
            raise AttributeError("this trainer adds no such loss")
        trainer.router_aux_loss_coef *= 2

    after_training_begins(patches, change)


FAULT: Fault = LibraryFault(
    breaks="doubles the coefficient of the load-balancing loss",
    noticed_by=frozenset({"train/objective"}),
    plant=plant,
)
