"""The loss is no number once. Trainers leave such losses out of their logs by default, and go on."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

LATE = 3


def plant(patches: ExitStack) -> None:
    """Spoil the loss of one step."""
    from trl import SFTTrainer

    def make(original: Any) -> Any:
        computed = 0

        def compute_loss(self: Any, *args: Any, **kwargs: Any) -> Any:
            nonlocal computed
            computed += 1
            loss = original(self, *args, **kwargs)
            return loss * float("nan") if computed == LATE else loss

        return compute_loss

    replace(patches, SFTTrainer, "compute_loss", make)


FAULT: Fault = LibraryFault(
    breaks="makes the loss of one step no number",
    noticed_by=frozenset({"train/loss", "train/update"}),
    plant=plant,
)
