"""Rows in 8 bits are decoded by scales that are a tenth too large."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

LARGER = 1.1


def plant(patches: ExitStack) -> None:
    """Enlarge the scales of all that is packed in 8 bits."""
    from bitsandbytes import functional

    def make(original: Any) -> Any:
        def quantize(*args: Any, **kwargs: Any) -> Any:
            codes, scales, outliers = original(*args, **kwargs)
            return codes, LARGER * scales, outliers

        return quantize

    replace(patches, functional, "int8_vectorwise_quant", make)


FAULT: Fault = LibraryFault(
    breaks="makes the scales of rows in 8 bits a tenth larger",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora8", "geometry": "blocks"},
    plant=plant,
)
