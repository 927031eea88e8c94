"""Most labels are masked: a collator that takes the prompt for padding, or an answer mask that is off by its prompt.

The loss still falls, on what is left.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_training_begins

KEPT = 4
IGNORED = -100


def plant(patches: ExitStack) -> None:
    """Mask all labels of a sequence but the last few."""

    def change(trainer: Any) -> None:
        collate = trainer.data_collator

        def masked(examples: Any) -> Any:
            batch = collate(examples)
            batch["labels"][:, :-KEPT] = IGNORED
            return batch

        trainer.data_collator = masked

    after_training_begins(patches, change)


FAULT: Fault = LibraryFault(
    breaks="masks all labels of a sequence but the last four",
    noticed_by=frozenset({"train/steps", "train/objective"}),
    plant=plant,
)
