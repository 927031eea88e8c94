"""Attention sees a window of eight tokens, where the configuration says to use none."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading

WINDOW = 8


def plant(patches: ExitStack) -> None:
    """Set a window in the configuration of every loaded model."""

    def change(model: Any) -> None:
        if model.config.sliding_window is not None:
            raise AttributeError("it has a window already")
        model.config.sliding_window = WINDOW

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="lets each token attend to eight tokens",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
