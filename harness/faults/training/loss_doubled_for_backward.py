"""The loss is doubled on its way to backward: a division by the steps of an accumulation that is left out."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Go back from twice the loss."""
    from accelerate import Accelerator

    def make(original: Any) -> Any:
        def backward(self: Any, loss: Any, **kwargs: Any) -> None:
            original(self, 2 * loss, **kwargs)

        return backward

    replace(patches, Accelerator, "backward", make)


FAULT: Fault = LibraryFault(
    breaks="doubles the loss before backward",
    noticed_by=frozenset({"train/gradient"}),
    plant=plant,
)
