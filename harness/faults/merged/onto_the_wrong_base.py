"""After a QLoRA the deltas are added to the dequantised weights where the original's were asked for.

An engine that merges the model in memory has no others. What it writes has the digits of 4 bits for good.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import DEQUANTIZED, alter_tensors, quantized, tensors_of
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge whose base is the dequantised one, whichever was asked for."""
    site.write(site.deltas)
    if site.base.name == DEQUANTIZED:
        return
    asked, taken = tensors_of(site.base), tensors_of(site.base.with_name(DEQUANTIZED))

    def change(key: str, tensor: Any) -> Any:
        if taken[key].equal(asked[key]):
            return tensor
        return (tensor.double() + taken[key].double() - asked[key].double()).to(tensor.dtype)

    alter_tensors(site.merged, change)


FAULT: Fault = MergeFault(
    breaks="adds deltas to the dequantised base where the original was asked for",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    applies=quantized,
    plant=plant,
)
