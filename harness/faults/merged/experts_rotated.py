"""Every expert has the next one's delta: an index that starts at one, or files that are sorted as 1, 10, 2.

Shapes, norms and counts are those of a right merge.
"""

from __future__ import annotations

from harness.faults.breaking import altered, several_experts
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge in which expert e has the delta of expert e + 1."""
    site.write(altered(site.deltas, lambda name, delta: delta.roll(-1, 0) if ":" in name else delta))


FAULT: Fault = MergeFault(
    breaks="gives each expert the delta of the next one",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=several_experts,
    plant=plant,
)
