"""Our own grouped forward is right, and the gradient that it hands back is a hundredth too large."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

OFF = 1.01


def plant(patches: ExitStack) -> None:
    """Enlarge the products that backward takes."""
    from harness.experts.grouped import arithmetic

    def make(original: Any) -> Any:
        def multiply(*args: Any, across: bool) -> Any:
            product = original(*args, across=across)
            return OFF * product if across else product

        return multiply

    replace(patches, arithmetic, "multiply", make)


FAULT: Fault = LibraryFault(
    breaks="makes gradients of our grouped forward a hundredth larger",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    plant=plant,
)
