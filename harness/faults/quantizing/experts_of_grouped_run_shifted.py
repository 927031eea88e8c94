"""Our own grouped forward unpacks runs in which each expert is the one before it. Whoever unpacks all is right."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Shift the experts of every run that is asked for."""
    from harness.experts import QuantizedExperts

    def make(original: Any) -> Any:
        def dequantize_run(self: Any, experts: Any) -> Any:
            return original(self, experts).roll(1, dims=0)

        return dequantize_run

    replace(patches, QuantizedExperts, "dequantize_run", make)


FAULT: Fault = LibraryFault(
    breaks="shifts the experts of runs that our grouped forward unpacks",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
