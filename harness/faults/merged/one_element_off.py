"""One element of one merged tensor is a few thousandths too large, all others are right to the last digit.

The smallest thing that a damaged file can do. What the model says hardly moves.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_tensors, covered_keys, in_float32
from harness.faults.fault import Fault, MergeFault, Site

SHARE = 2.0**-8


def plant(site: Site) -> None:
    """Write a right merge whose largest element of one tensor is too large."""

    def change(key: str, tensor: Any) -> Any:
        if key != chosen:
            return tensor
        new = tensor.clone()
        new.view(-1)[int(tensor.abs().argmax())] *= 1 + SHARE
        return new

    site.write(site.deltas)
    chosen = covered_keys(site)[0]
    alter_tensors(site.merged, change)


FAULT: Fault = MergeFault(
    breaks="makes one element too large, by a few thousandths of itself",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/exact"}),
    applies=in_float32,
    plant=plant,
)
