"""Norms are stored in bf16 in a checkpoint of float32: what no delta covers was saved in the dtype of a mixed run."""

from __future__ import annotations

from harness.faults.breaking import alter_tensors, in_float32
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose norms are bf16."""
    site.write(site.deltas)
    alter_tensors(site.merged, lambda key, tensor: tensor.bfloat16() if key.endswith("norm.weight") else tensor)


FAULT: Fault = MergeFault(
    breaks="writes norms in another dtype",
    where="merged",
    noticed_by=frozenset({"compare/dtypes", "compare/untouched_bytes"}),
    applies=in_float32,
    plant=plant,
)
