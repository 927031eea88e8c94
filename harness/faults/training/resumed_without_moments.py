"""A resumed training begins with a new optimizer: the state that was saved does not fit, and is passed over.

Weights, step count and data go on where they were. So the loss has no jump.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Load no state of the optimizer and of the scheduler from a checkpoint."""
    from transformers import Trainer

    def make(_original: Any) -> Any:
        def load(_self: Any, _checkpoint: Any) -> None:
            return None

        return load

    replace(patches, Trainer, "_load_optimizer_and_scheduler", make)


FAULT: Fault = LibraryFault(
    breaks="resumes training without the optimizer's state",
    noticed_by=frozenset({"train/resumed"}),
    cell={"recipe": "lora-resumed"},
    plant=plant,
)
