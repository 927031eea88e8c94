"""Our own grouped forward multiplies with one column of each expert's weight that is a twentieth too large.

The harness is under test here too.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

OFF = 1.05


def plant(patches: ExitStack) -> None:
    """Enlarge the first input of every product with a base weight."""
    from harness.experts.grouped import fused

    def make(original: Any) -> Any:
        def linear(x: Any, *args: Any, **kwargs: Any) -> Any:
            factors = x.new_ones(x.shape[1])
            factors[0] = OFF
            return original(x * factors, *args, **kwargs)

        return linear

    replace(patches, fused, "grouped_linear", make)


FAULT: Fault = LibraryFault(
    breaks="makes one column of each expert's weight larger in our grouped forward",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    plant=plant,
)
