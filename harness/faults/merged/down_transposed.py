"""The delta of a square down_proj is transposed: lora_A and lora_B taken for each other.

PEFT exchanged their parts for fused experts in 0.19.1 (peft#3165). Where a parameter is square no shape says so.
"""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge in which the delta of each expert's down_proj is transposed."""
    site.write(altered(site.deltas, lambda name, delta: delta.mT if name.endswith(":down_proj") else delta))


FAULT: Fault = MergeFault(
    breaks="transposes the deltas of a square down_proj",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"geometry": "square-down"},
    plant=plant,
    reference="peft#3165",
)
