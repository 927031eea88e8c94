"""Each sequence is trained on the labels of the one before it: two lists that are shuffled apart."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import after_collating


def plant(patches: ExitStack) -> None:
    """Roll the labels of every batch by one sequence."""

    def change(batch: Any, _before: int) -> None:
        batch["labels"] = batch["labels"].roll(1, dims=0)

    after_collating(patches, change)


FAULT: Fault = LibraryFault(
    breaks="trains each sequence on the labels of another",
    noticed_by=frozenset({"train/objective"}),
    plant=plant,
)
