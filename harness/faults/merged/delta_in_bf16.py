"""In a bf16 checkpoint the delta is rounded to bf16 before it is added, and the sum once more.

PEFT does so with fused parameters. No element is off by more than one unit in the last place, and many are by one.
"""

from __future__ import annotations

from harness.faults.breaking import altered, in_bf16
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge of deltas that were rounded to bf16."""
    site.write(altered(site.deltas, lambda _name, delta: delta.bfloat16().double()))


FAULT: Fault = MergeFault(
    breaks="rounds deltas to bf16 before they are added",
    where="merged",
    noticed_by=frozenset({"compare/exact"}),
    cell={"dtype": "bf16"},
    applies=in_bf16,
    plant=plant,
    reference="peft#1977",
)
