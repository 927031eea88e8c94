"""After a QLoRA the merge onto the dequantised base leaves the rest in disorder, and that onto the original does not.

A norm has changed in its last digit and the tokenizer is gone. Every delta is right.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import DEQUANTIZED, alter_tensors, quantized
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write right merges, and disturb what lies beside the deltas of the second."""
    import torch

    def change(key: str, tensor: Any) -> Any:
        return torch.nextafter(tensor, torch.full_like(tensor, 9.0)) if key.endswith("norm.weight") else tensor

    site.write(site.deltas)
    if site.base.name == DEQUANTIZED:
        alter_tensors(site.merged, change)
        (site.merged / "tokenizer.json").unlink()


FAULT: Fault = MergeFault(
    breaks="changes norms and loses the tokenizer in the merge onto the dequantised base",
    where="merged",
    noticed_by=frozenset({"compare/untouched_dequantized"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    applies=quantized,
    plant=plant,
)
