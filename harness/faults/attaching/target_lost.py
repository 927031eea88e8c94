"""One target gets no LoRA: a name that was rewritten into one that matches nothing."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import before_attaching


def plant(patches: ExitStack) -> None:
    """Take one module out of the targets."""

    def change(_model: Any, config: Any) -> None:
        config.target_modules = set(sorted(config.target_modules)[1:])

    before_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="gives one target no LoRA",
    noticed_by=frozenset({"attach/attached"}),
    plant=plant,
)
