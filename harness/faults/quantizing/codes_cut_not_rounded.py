"""Codes of 8 bits are cut towards zero, not rounded to the nearest."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

STEPS = 127


def plant(patches: ExitStack) -> None:
    """Cut all that is packed in 8 bits."""
    from bitsandbytes import functional

    def make(original: Any) -> Any:
        def quantize(weights: Any, *args: Any, **kwargs: Any) -> Any:
            codes, scales, outliers = original(weights, *args, **kwargs)
            share = weights.float() / scales.float().view(*scales.shape, 1) * STEPS
            return share.trunc().to(codes.dtype).view_as(codes), scales, outliers

        return quantize

    replace(patches, functional, "int8_vectorwise_quant", make)


FAULT: Fault = LibraryFault(
    breaks="cuts codes of 8 bits towards zero",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora8", "geometry": "blocks"},
    plant=plant,
)
