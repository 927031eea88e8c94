"""Gradient checkpointing is asked for, every layer says that it is on, and none is computed again.

Training needs the memory that it was to save. All numbers are right.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Run what is to be computed again once, and keep everything."""
    from transformers import modeling_utils

    def make(_original: Any) -> Any:
        def checkpoint(function: Any, *args: Any, **_options: Any) -> Any:
            return function(*args)

        return checkpoint

    replace(patches, modeling_utils, "checkpoint", make)


FAULT: Fault = LibraryFault(
    breaks="computes no layer again where gradient checkpointing is on",
    noticed_by=frozenset({"train/gradient"}),
    cell={"recipe": "lora-checkpointing"},
    plant=plant,
)
