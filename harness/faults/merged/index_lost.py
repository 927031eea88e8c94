"""The index of the shards is missing: files copied by a pattern that it does not match. No loader finds the weights."""

from __future__ import annotations

from harness.faults.breaking import INDEX
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and remove its index."""
    site.write(site.deltas)
    (site.merged / INDEX).unlink()


FAULT: Fault = MergeFault(
    breaks="loses the index of the shards",
    where="merged",
    noticed_by=frozenset({"reload-merged", "compare/files"}),
    plant=plant,
)
