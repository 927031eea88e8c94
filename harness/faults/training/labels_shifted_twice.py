"""Labels are shifted by the collator and again by the loss, so that the token after next is learnt."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import after_collating


def plant(patches: ExitStack) -> None:
    """Shift the labels of every batch by one; the last stays."""

    def change(batch: Any, _before: int) -> None:
        labels = batch["labels"].clone()
        labels[:, :-1] = batch["labels"][:, 1:]
        batch["labels"] = labels

    after_collating(patches, change)


FAULT: Fault = LibraryFault(
    breaks="shifts labels twice",
    noticed_by=frozenset({"train/objective"}),
    plant=plant,
)
