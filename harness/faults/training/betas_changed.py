"""The optimizer averages squares of gradients over fewer steps than by default: large models are trained so."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import optimizer_options

BETAS = (0.9, 0.95)


def plant(patches: ExitStack) -> None:
    """Set other betas."""

    def change(options: dict[str, Any]) -> None:
        if options["betas"] == BETAS:
            raise AttributeError("they are the trainer's own")
        options["betas"] = BETAS

    optimizer_options(patches, change)


FAULT: Fault = LibraryFault(
    breaks="changes the optimizer's betas",
    noticed_by=frozenset({"train/update"}),
    plant=plant,
)
