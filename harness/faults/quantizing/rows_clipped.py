"""Weights in 8 bits are clipped to nine tenths of the largest of their row, as a calibration for 4 bits would.

Small weights gain precision. The few largest of each row lose their size.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

KEPT = 0.9


def plant(patches: ExitStack) -> None:
    """Clip rows of weights before they are coded; inputs, which come with a threshold, stay."""
    from bitsandbytes import functional

    def make(original: Any) -> Any:
        def int8_vectorwise_quant(values: Any, *args: Any, **kwargs: Any) -> Any:
            if args or kwargs:
                return original(values, *args, **kwargs)
            limit = values.abs().amax(dim=-1, keepdim=True) * KEPT
            return original(values.clamp(-limit, limit))

        return int8_vectorwise_quant

    replace(patches, functional, "int8_vectorwise_quant", make)


FAULT: Fault = LibraryFault(
    breaks="clips the largest weights of each row in 8 bits",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora8", "geometry": "blocks"},
    plant=plant,
)
