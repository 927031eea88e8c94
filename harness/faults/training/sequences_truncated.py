"""Sequences are cut to half of their length: a limit by default that is lower than they are long."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import after_collating


def plant(patches: ExitStack) -> None:
    """Cut every batch to half of its length."""

    def change(batch: Any, _before: int) -> None:
        length = batch["input_ids"].shape[1] // 2
        for name, values in list(batch.items()):
            batch[name] = values[:, :length]

    after_collating(patches, change)


FAULT: Fault = LibraryFault(
    breaks="cuts sequences to half of their length",
    noticed_by=frozenset({"train/steps"}),
    plant=plant,
)
