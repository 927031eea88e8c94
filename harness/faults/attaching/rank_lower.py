"""The LoRA has another rank than was asked for, in memory and in what is saved alike.

PEFT 0.19 and later raise the rank themselves where they rewrite targets of fused experts.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import before_attaching


def plant(patches: ExitStack) -> None:
    """Lower the rank by one."""

    def change(_model: Any, config: Any) -> None:
        config.r -= 1

    before_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="gives the LoRA a lower rank than was asked for",
    noticed_by=frozenset({"attach/attached"}),
    plant=plant,
)
