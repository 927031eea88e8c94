"""Every delta is subtracted: an unmerge that runs where a merge should. Norms are those of a right merge."""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write the base minus every delta."""
    site.write(altered(site.deltas, lambda _name, delta: -delta))


FAULT: Fault = MergeFault(
    breaks="subtracts every delta",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
