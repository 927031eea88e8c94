"""Every delta is added twice: a merge of what was merged already, or a loop that meets each module by two names."""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge with every delta twice."""
    site.write(altered(site.deltas, lambda _name, delta: 2 * delta))


FAULT: Fault = MergeFault(
    breaks="adds every delta twice",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
