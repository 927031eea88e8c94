"""Adam's moments are not corrected for starting at zero: ``correct_bias=False``, as BERT's optimizer had it.

First steps are some three times as long, and later ones as they should be.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import at_each_step

LONG_AGO = 1e6


def plant(patches: ExitStack) -> None:
    """Let the optimizer think that it has taken very many steps."""
    import torch

    def step(optimizer: Any, take: Any, _asked: int) -> None:
        for group in optimizer.param_groups:
            for weight in group["params"]:
                state = optimizer.state[weight]
                state.setdefault("exp_avg", torch.zeros_like(weight))
                state.setdefault("exp_avg_sq", torch.zeros_like(weight))
                state["step"] = torch.tensor(LONG_AGO, dtype=torch.float32)
        take()

    at_each_step(patches, step)


FAULT: Fault = LibraryFault(
    breaks="leaves out the correction of Adam's moments",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
