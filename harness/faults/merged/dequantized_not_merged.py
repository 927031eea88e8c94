"""After a QLoRA the merge onto the dequantised base is that base: deltas were matched to names of packed weights.

The merge onto the original base is right, so only what is said of the other one can show it.
"""

from __future__ import annotations

from harness.faults.breaking import DEQUANTIZED, quantized
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write the dequantised base without a delta, and a right merge onto the original."""
    site.write({} if site.base.name == DEQUANTIZED else site.deltas)


FAULT: Fault = MergeFault(
    breaks="drops every delta of the merge onto the dequantised base",
    where="merged",
    noticed_by=frozenset({"compare/applied_dequantized", "compare/kl_dequantized"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    applies=quantized,
    plant=plant,
)
