"""A copy of the model is trained, and the one that was handed over stays as it is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_training_begins


def plant(patches: ExitStack) -> None:
    """Give every trainer a copy of its model."""
    import copy

    def change(trainer: Any) -> None:
        trainer.model = trainer.model_wrapped = copy.deepcopy(trainer.model)

    after_training_begins(patches, change)


FAULT: Fault = LibraryFault(
    breaks="trains a copy of the model",
    noticed_by=frozenset({"train/gradients"}),
    plant=plant,
)
