"""In a bf16 checkpoint one element is two units in the last place off: one more than two roundings could make it."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_tensors, covered_keys, in_bf16
from harness.faults.fault import Fault, MergeFault, Site

STEPS = 2


def plant(site: Site) -> None:
    """Write a right merge whose largest element of one tensor is two steps further from zero."""
    import torch

    def change(key: str, tensor: Any) -> Any:
        if key != chosen:
            return tensor
        new = tensor.clone()
        new.view(torch.int16).view(-1)[int(tensor.abs().argmax())] += STEPS
        return new

    site.write(site.deltas)
    chosen = covered_keys(site)[0]
    alter_tensors(site.merged, change)


FAULT: Fault = MergeFault(
    breaks="moves one element of a bf16 checkpoint by two units in the last place",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/exact"}),
    cell={"dtype": "bf16"},
    applies=in_bf16,
    plant=plant,
)
