"""The deltas of routed experts are missing: an adapter on fused experts, a checkpoint with a tensor for each expert.

axolotl's default merge found no base weight of the fused name, warned, and ended with status 0.
"""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Facts, Fault, MergeFault, Site


def applies(facts: Facts) -> bool:
    """Where fused experts are targeted."""
    return facts.num_experts is not None


def plant(site: Site) -> None:
    """Write a merge without the deltas of fused experts."""
    site.write(altered(site.deltas, lambda name, delta: None if ":" in name else delta))


FAULT: Fault = MergeFault(
    breaks="drops the deltas of routed experts",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=applies,
    plant=plant,
    reference="axolotl, default merge",
)
