"""A bf16 checkpoint is written as float32: the model was loaded in the default dtype, and saved as it was in memory."""

from __future__ import annotations

from harness.faults.breaking import alter_tensors, in_bf16
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge in float32."""
    site.write(site.deltas)
    alter_tensors(site.merged, lambda _key, tensor: tensor.float())


FAULT: Fault = MergeFault(
    breaks="writes a bf16 checkpoint as float32",
    where="merged",
    noticed_by=frozenset({"compare/dtypes"}),
    cell={"dtype": "bf16"},
    applies=in_bf16,
    plant=plant,
)
