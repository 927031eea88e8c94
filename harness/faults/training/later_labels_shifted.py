"""From the second batch on labels are shifted twice: a collator with a memory."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import after_collating


def plant(patches: ExitStack) -> None:
    """Shift the labels of every batch but the first by one; the last stays."""

    def change(batch: Any, before: int) -> None:
        if before:
            labels = batch["labels"].clone()
            labels[:, :-1] = batch["labels"][:, 1:]
            batch["labels"] = labels

    after_collating(patches, change)


FAULT: Fault = LibraryFault(
    breaks="shifts labels twice from the second batch on",
    noticed_by=frozenset({"train/objective"}),
    plant=plant,
)
