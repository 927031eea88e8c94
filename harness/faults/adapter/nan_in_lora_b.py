"""One number of lora_B is NaN: a training that diverged in its last step. An engine should refuse it, by name."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_tensors
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Put a NaN into the lora_B of one pair."""

    def change(key: str, tensor: Any) -> Any:
        if key != f"{min(site.pairs)}.lora_B.weight":
            return tensor
        new = tensor.clone()
        new.view(-1)[0] = float("nan")
        return new

    alter_tensors(site.adapter, change)


FAULT: Fault = MergeFault(
    breaks="puts a NaN into lora_B",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
