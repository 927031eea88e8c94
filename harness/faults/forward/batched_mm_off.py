"""transformers' batched forward of experts returns a hundredth too much. Nothing takes it unless it is asked for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

OFF = 1.01


def plant(patches: ExitStack) -> None:
    """Scale what the batched products return."""
    from transformers.integrations import moe

    def make(original: Any) -> Any:
        def linear(*args: Any, **kwargs: Any) -> Any:
            return OFF * original(*args, **kwargs)

        return linear

    replace(patches, moe, "_batched_linear", make)


FAULT: Fault = LibraryFault(
    breaks="makes the experts' batched products a hundredth larger",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    plant=plant,
)
