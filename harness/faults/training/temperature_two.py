"""Logits are divided by two before the loss, as a trainer that samples does by its temperature."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

TEMPERATURE = 2.0


def plant(patches: ExitStack) -> None:
    """Have the trainer's output head divide its logits."""
    from trl.trainer import sft_trainer

    def make(original: Any) -> Any:
        def add(*args: Any, **kwargs: Any) -> None:
            original(*args, temperature=TEMPERATURE, **kwargs)

        return add

    replace(patches, sft_trainer, "add_fused_lm_head", make)


FAULT: Fault = LibraryFault(
    breaks="divides the logits by two in training",
    noticed_by=frozenset({"train/objective"}),
    plant=plant,
)
