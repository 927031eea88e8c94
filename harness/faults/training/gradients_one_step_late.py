"""Each step is taken with the gradients of the step before: they are copied while the backward pass still runs.

The first step has its own. The loss falls as it should, a little later.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import at_each_step


def plant(patches: ExitStack) -> None:
    """Exchange the gradients of a step for those of the one before."""
    held: dict[int, Any] = {}

    def step(optimizer: Any, take: Any, _asked: int) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                if weight.grad is None:
                    continue
                now = weight.grad.clone()
                weight.grad.copy_(held.get(id(weight), now))
                held[id(weight)] = now
        take()

    at_each_step(patches, step)


FAULT: Fault = LibraryFault(
    breaks="takes each step with the gradients of the one before",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
