"""All blocks of a tensor share one scale, its largest weight: fewer codes are used, and all is within range."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import codes_of_4_bits

CODES = 16


def plant(patches: ExitStack) -> None:
    """Code every tensor by its largest weight, the nearest code for each, and say so in the offset of its scales."""

    def change(weights: Any, codes: Any, state: Any) -> Any:
        largest = weights.abs().max().float()
        nearest = (weights.float().reshape(-1, 1) / largest - state.code).abs().argmin(-1).view(-1, 2)
        if not state.nested:
            raise AttributeError("its scales are not codes")
        state.offset, state.state2.absmax = largest, state.state2.absmax * 0
        return (nearest[:, 0] * CODES + nearest[:, 1]).to(codes.dtype).view_as(codes)

    codes_of_4_bits(patches, change)


FAULT: Fault = LibraryFault(
    breaks="gives all blocks of a tensor one scale",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
