"""After a QLoRA the merge onto the dequantised base is written in bf16, the dtype that codes are usually decoded to.

The base it goes onto is stored in float32.
"""

from __future__ import annotations

from harness.faults.breaking import DEQUANTIZED, alter_tensors, quantized
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write right merges, that onto the dequantised base in bf16."""
    site.write(site.deltas)
    if site.base.name == DEQUANTIZED:
        alter_tensors(site.merged, lambda _key, tensor: tensor.bfloat16())


FAULT: Fault = MergeFault(
    breaks="writes the merge onto the dequantised base in another dtype",
    where="merged",
    noticed_by=frozenset({"compare/untouched_dequantized", "compare/kl_dequantized"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    applies=quantized,
    plant=plant,
)
