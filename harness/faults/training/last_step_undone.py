"""Training ends with the weights of one step before: an older checkpoint that is loaded as the best one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace
from harness.faults.places import at_each_step


def plant(patches: ExitStack) -> None:
    """Put back what weights were before the last step, when training has ended."""
    from transformers import Trainer

    before: list[tuple[Any, Any]] = []

    def step(optimizer: Any, take: Any, _asked: int) -> None:
        before[:] = [(it, it.detach().clone()) for group in optimizer.param_groups for it in group["params"]]
        take()

    def make(original: Any) -> Any:
        def train(self: Any, *args: Any, **kwargs: Any) -> Any:
            outcome = original(self, *args, **kwargs)
            for weight, values in before:
                weight.data.copy_(values)
            return outcome

        return train

    at_each_step(patches, step)
    replace(patches, Trainer, "train", make)


FAULT: Fault = LibraryFault(
    breaks="undoes the last step when training ends",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
