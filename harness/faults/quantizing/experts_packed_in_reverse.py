"""Experts are packed last to first, and decoded first to last."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Pack the experts of every parameter in reverse."""
    from harness.experts.quantization import conversion

    def make(original: Any) -> Any:
        def pack(weights: Any, *args: Any, **kwargs: Any) -> Any:
            return original(weights.flip(0), *args, **kwargs)

        return pack

    replace(patches, conversion, "pack", make)


FAULT: Fault = LibraryFault(
    breaks="packs experts in reverse",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
