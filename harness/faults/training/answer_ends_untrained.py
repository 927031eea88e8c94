"""The last token of each answer is left out of the loss: the mask ends one token before the answer does.

A model that never learns to end its turn goes on talking. The loss hardly shows it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import after_collating

IGNORED = -100


def plant(patches: ExitStack) -> None:
    """Mask the last label of every run of labels."""

    def change(batch: Any, _made: int) -> None:
        labels = batch["labels"]
        trained = labels != IGNORED
        ends = trained.clone()
        ends[:, :-1] &= ~trained[:, 1:]
        labels[ends] = IGNORED

    after_collating(patches, change)


FAULT: Fault = LibraryFault(
    breaks="leaves the last token of each answer out of the loss",
    noticed_by=frozenset({"train/steps", "train/objective"}),
    cell={"recipe": "lora-chat"},
    plant=plant,
)
