"""Gradients are not clipped, though their norm is measured and a limit was asked for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Measure the norm of the gradients, and leave them."""
    from transformers import Trainer

    def make(_original: Any) -> Any:
        def clip(self: Any, model: Any) -> Any:
            return self.accelerator.clip_grad_norm_(model.parameters(), float("inf"))

        return clip

    replace(patches, Trainer, "_clip_grad_norm", make)


FAULT: Fault = LibraryFault(
    breaks="does not clip gradients",
    noticed_by=frozenset({"train/gradient"}),
    plant=plant,
)
