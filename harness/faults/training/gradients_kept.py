"""Gradients are not set back between steps, so that each step follows the sum of all before it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Keep gradients while an epoch runs."""
    from unittest import mock

    from transformers import Trainer

    def make(original: Any) -> Any:
        def run(self: Any, model: Any, **kwargs: Any) -> None:
            with mock.patch.object(model, "zero_grad"):
                original(self, model=model, **kwargs)

        return run

    replace(patches, Trainer, "_run_epoch", make)


FAULT: Fault = LibraryFault(
    breaks="does not set gradients back between steps",
    noticed_by=frozenset({"train/gradient"}),
    plant=plant,
)
