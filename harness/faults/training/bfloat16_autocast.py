"""Training computes in bfloat16 where float32 was asked for. TRL 1.x does so unless it is told not to."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Have every trainer compute its losses under autocast."""
    import torch
    from transformers import Trainer

    def make(_original: Any) -> Any:
        def autocast(self: Any, *_args: Any, **_kwargs: Any) -> Any:
            return torch.autocast(self.args.device.type, dtype=torch.bfloat16)

        return autocast

    replace(patches, Trainer, "autocast_smart_context_manager", make)


FAULT: Fault = LibraryFault(
    breaks="computes in bfloat16 while training",
    noticed_by=frozenset({"train/objective", "train/gradient", "train/precision"}),
    plant=plant,
)
