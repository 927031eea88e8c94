"""The gate rows of one expert's fused delta are missing on disk, all else is there: a slice that starts half too late.

Checkpoints of this family hold all experts in one tensor, so that the fault is a sixteenth of one.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import altered, several_experts
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge without the gate rows of the first expert of one layer."""
    name = max(name for name in site.deltas if name.endswith(":gate_up_proj"))

    def change(this: str, delta: Any) -> Any:
        if this != name:
            return delta
        new = delta.clone()
        new[0, : delta.shape[1] // 2] = 0
        return new

    site.write(altered(site.deltas, change))


FAULT: Fault = MergeFault(
    breaks="drops the gate rows of one expert inside a fused tensor",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/exact", "compare/kl", "compare/logprob"}),
    cell={"family": "qwen3_5_moe"},
    applies=several_experts,
    plant=plant,
)
