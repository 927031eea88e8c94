"""Every step sees the first batch: an iterator that is made anew each time."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Hand out the first batch each time."""
    import copy

    from transformers import Trainer

    def make(original: Any) -> Any:
        kept: list[Any] = []

        def get(self: Any, *args: Any, **kwargs: Any) -> Any:
            batches, count = original(self, *args, **kwargs)
            if not kept:
                kept.append(copy.deepcopy(batches))
            return copy.deepcopy(kept[0]), count

        return get

    replace(patches, Trainer, "get_batch_samples", make)


FAULT: Fault = LibraryFault(
    breaks="trains on the first batch in every step",
    noticed_by=frozenset({"train/steps"}),
    plant=plant,
)
