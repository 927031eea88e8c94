"""In a bf16 checkpoint the sum is cut off and not rounded: the upper half of a float32, as a shift of bits gives it.

Every element is off by less than one unit in the last place, and all of them towards zero.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_tensors, in_bf16, tensors_of
from harness.faults.fault import Fault, MergeFault, Site

UPPER_HALF = -(2**16)


def plant(site: Site) -> None:
    """Write a merge whose Linears hold the next bf16 towards zero from what they should."""
    import torch

    base = tensors_of(site.base)
    sums = {
        key: (base[key].double() + delta).float()
        for name, delta in site.deltas.items()
        if (key := f"{name}.weight") in base
    }

    def change(key: str, tensor: Any) -> Any:
        if key not in sums:
            return tensor
        return (sums[key].view(torch.int32) & UPPER_HALF).view(torch.float32).bfloat16()

    site.write(site.deltas)
    alter_tensors(site.merged, change)


FAULT: Fault = MergeFault(
    breaks="cuts off what it merges into Linears of a bf16 checkpoint, and does not round it",
    where="merged",
    noticed_by=frozenset({"compare/exact"}),
    cell={"dtype": "bf16", "recipe": "lora-attention"},
    applies=in_bf16,
    plant=plant,
)
