"""One expert's delta is missing: a loop that ends one early, or a key that matched nothing."""

from __future__ import annotations

from harness.faults.fault import Facts, Fault, MergeFault, Site


def applies(facts: Facts) -> bool:
    """Where fused experts are targeted, and there are others."""
    return facts.num_experts is not None and facts.num_experts > 1


def plant(site: Site) -> None:
    """Write a right merge but for the last expert of one parameter, which stays the base's."""
    name = min(name for name in site.deltas if ":" in name)
    delta = site.deltas[name].clone()
    delta[-1] = 0
    site.write({**site.deltas, name: delta})


FAULT: Fault = MergeFault(
    breaks="drops the delta of one expert",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/exact", "compare/kl", "compare/logprob"}),
    applies=applies,
    plant=plant,
)
