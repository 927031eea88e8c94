"""alpha is taken for alpha / r, so that every delta is r times too large: the rank was asked of what has none."""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Facts, Fault, MergeFault, Site


def applies(facts: Facts) -> bool:
    """With rank 1 nothing is divided."""
    return facts.rank > 1


def plant(site: Site) -> None:
    """Write a merge with every delta times the rank."""
    site.write(altered(site.deltas, lambda _name, delta: site.facts.rank * delta))


FAULT: Fault = MergeFault(
    breaks="makes every delta as many times too large as the rank is",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=applies,
    plant=plant,
)
