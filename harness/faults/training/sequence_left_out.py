"""One sequence is never seen, and another one in its place: an index that is off by one, and cannot fall short."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_training_begins


def plant(patches: ExitStack) -> None:
    """Put the first sequence in the place of the last."""

    def change(trainer: Any) -> None:
        dataset = trainer.train_dataset
        trainer.train_dataset = dataset.select([*range(len(dataset) - 1), 0])

    after_training_begins(patches, change)


FAULT: Fault = LibraryFault(
    breaks="leaves one sequence out",
    noticed_by=frozenset({"train/steps"}),
    plant=plant,
)
