"""One element of a merged tensor is NaN: a sum that overflowed, or a bit that fell over on the way to the disk."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_tensors, covered_keys
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and put a NaN into one tensor."""

    def change(key: str, tensor: Any) -> Any:
        if key != chosen:
            return tensor
        new = tensor.clone()
        new.view(-1)[-1] = float("nan")
        return new

    site.write(site.deltas)
    chosen = covered_keys(site)[0]
    alter_tensors(site.merged, change)


FAULT: Fault = MergeFault(
    breaks="puts a NaN into one element of a merged tensor",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/exact", "compare/kl"}),
    plant=plant,
)
