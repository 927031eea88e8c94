"""The halves of the fused gate_up delta change places: an engine that takes up_proj for the first rows.

Both halves have the same shape, so nothing but the values tells them apart.
"""

from __future__ import annotations

from harness.faults.breaking import altered, several_experts
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge in which gate_proj has the delta of up_proj, and the reverse."""
    site.write(
        altered(
            site.deltas,
            lambda name, delta: delta.roll(delta.shape[1] // 2, 1) if name.endswith(":gate_up_proj") else delta,
        )
    )


FAULT: Fault = MergeFault(
    breaks="exchanges the deltas of gate_proj and up_proj",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=several_experts,
    plant=plant,
)
