"""The adapter has lora pairs for half of the base's experts: trained on a pruned model, or on another size of it."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_tensors, several_experts
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Keep the first half of lora_A's rows and of lora_B's columns."""
    fused = tuple(f"{pair}.lora_" for pair, name in site.pairs.items() if ":" in name)

    def change(key: str, tensor: Any) -> Any:
        if not key.startswith(fused):
            return tensor
        return tensor[: len(tensor) // 2] if ".lora_A." in key else tensor[:, : tensor.shape[1] // 2]

    alter_tensors(site.adapter, change)


FAULT: Fault = MergeFault(
    breaks="has lora pairs for half of the experts",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    applies=several_experts,
    plant=plant,
)
