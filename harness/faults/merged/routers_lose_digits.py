"""Routers have lost digits and kept their dtype: loaded in bf16 with the rest of the model, and saved in float32 again.

Which experts are chosen depends on the last digits where scores are close.
"""

from __future__ import annotations

from harness.faults.breaking import alter_tensors, in_float32
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose routers were rounded through bf16."""
    site.write(site.deltas)
    alter_tensors(site.merged, lambda key, tensor: tensor.bfloat16().float() if key.endswith("gate.weight") else tensor)


FAULT: Fault = MergeFault(
    breaks="rounds routers through bf16",
    where="merged",
    noticed_by=frozenset({"compare/untouched_bytes"}),
    applies=in_float32,
    plant=plant,
)
