"""Weights are coded in another code first and decoded again: a checkpoint in 4 bits that is quantised anew."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

FIRST = "fp4"


def plant(patches: ExitStack) -> None:
    """Let all that is packed pass through another code."""
    from bitsandbytes import functional

    def make(original: Any) -> Any:
        def quantize(weights: Any, *args: Any, **kwargs: Any) -> Any:
            once = functional.dequantize_4bit(*original(weights, quant_type=FIRST))
            return original(once.to(weights.dtype).view_as(weights), *args, **kwargs)

        return quantize

    replace(patches, functional, "quantize_4bit", make)


FAULT: Fault = LibraryFault(
    breaks="quantises weights that were quantised before",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
