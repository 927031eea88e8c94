"""Weights decay where no decay was asked for, as optimizers do whose own default it is."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

DECAY = 0.1


def plant(patches: ExitStack) -> None:
    """Give all groups of the optimizer a decay."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def create(self: Any, *args: Any, **kwargs: Any) -> Any:
            optimizer = original(self, *args, **kwargs)
            for group in optimizer.param_groups:
                group["weight_decay"] = DECAY
            return optimizer

        return create

    replace(patches, Trainer, "create_optimizer", make)


FAULT: Fault = LibraryFault(
    breaks="decays the weights by 0.1",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
