"""The LoRA of Linears has twice its scaling in training mode: what stands in for dropout, and was never undone."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Double the scaling while a Linear in training mode is called."""
    from unittest import mock

    from peft.tuners.lora.layer import Linear

    def make(original: Any) -> Any:
        def forward(self: Any, *args: Any, **kwargs: Any) -> Any:
            factor = 2 if self.training else 1
            with mock.patch.dict(self.scaling, {name: factor * value for name, value in self.scaling.items()}):
                return original(self, *args, **kwargs)

        return forward

    replace(patches, Linear, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="doubles the LoRA's scaling in training mode",
    noticed_by=frozenset({"train/modes"}),
    plant=plant,
)
