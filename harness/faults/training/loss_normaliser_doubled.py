"""The loss is divided by twice the number of its tokens: a count over devices that each count all."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Double the count that a trainer divides by."""
    from transformers import Trainer

    def make(original: Any) -> Any:
        def count(self: Any, *args: Any, **kwargs: Any) -> Any:
            return 2 * original(self, *args, **kwargs)

        return count

    replace(patches, Trainer, "_get_num_items_in_batch", make)


FAULT: Fault = LibraryFault(
    breaks="divides the loss by twice the number of tokens",
    noticed_by=frozenset({"train/objective"}),
    plant=plant,
)
