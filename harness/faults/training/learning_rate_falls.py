"""The learning rate falls from step to step where a constant one was asked for: a schedule by default."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_training_begins


def plant(patches: ExitStack) -> None:
    """Give every trainer a linear schedule."""
    from transformers import SchedulerType

    def change(trainer: Any) -> None:
        if trainer.args.lr_scheduler_type == SchedulerType.LINEAR:
            raise AttributeError("a linear schedule was asked for")
        trainer.args.lr_scheduler_type = SchedulerType.LINEAR

    after_training_begins(patches, change)


FAULT: Fault = LibraryFault(
    breaks="lets the learning rate fall",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
