"""Each new token has the position of the one before it, while the cache has theirs."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import inputs_of_generation


def plant(patches: ExitStack) -> None:
    """Shift the position of every token that is decoded alone."""

    def change(inputs: dict[str, Any]) -> None:
        positions = inputs["position_ids"]
        if positions.shape[-1] == 1:
            inputs["position_ids"] = positions - 1

    inputs_of_generation(patches, change)


FAULT: Fault = LibraryFault(
    breaks="gives each new token the position before its own",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
