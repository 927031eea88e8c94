"""One tensor has another name, in its shard and in the index: a prefix that was taken off once too often.

Loaders leave the parameter at what it was initialised to.
"""

from __future__ import annotations

from harness.faults.breaking import renamed_tensors
from harness.faults.fault import Fault, MergeFault, Site

KEY = "lm_head.weight"


def plant(site: Site) -> None:
    """Write a right merge in which the output matrix is called something else."""
    site.write(site.deltas)
    renamed_tensors(site.merged, lambda key: "head.weight" if key == KEY else key)


FAULT: Fault = MergeFault(
    breaks="renames one tensor",
    where="merged",
    noticed_by=frozenset({"reload-merged", "compare/keys"}),
    plant=plant,
)
