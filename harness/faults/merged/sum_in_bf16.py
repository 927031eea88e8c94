"""The sum of base and delta is rounded through bf16 although the checkpoint is stored in float32.

A base loaded in half precision to save memory does that, and its merge is written in float32 again (peft#1977).
"""

from __future__ import annotations

from harness.faults.breaking import alter_tensors, covered_keys, in_float32
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge whose changed tensors have eight digits left."""
    site.write(site.deltas)
    keys = set(covered_keys(site))
    alter_tensors(site.merged, lambda key, tensor: tensor.bfloat16().float() if key in keys else tensor)


FAULT: Fault = MergeFault(
    breaks="rounds what it merges to bf16 in a checkpoint of float32",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/exact"}),
    applies=in_float32,
    plant=plant,
    reference="peft#1977",
)
