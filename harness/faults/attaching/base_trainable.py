"""A weight of the base is left to be trained beside the LoRA, so that base plus delta is not what was trained."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching


def plant(patches: ExitStack) -> None:
    """Thaw the last norm."""

    def change(model: Any) -> None:
        norms = [weight for name, weight in model.named_parameters() if name.endswith("norm.weight")]
        norms[-1].requires_grad_()

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="trains a weight of the base",
    noticed_by=frozenset({"train"}),
    plant=plant,
)
