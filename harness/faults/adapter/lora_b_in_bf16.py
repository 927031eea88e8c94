"""lora_B is stored in bf16 beside a lora_A in float32: cast on the way to a hub, to make the file smaller."""

from __future__ import annotations

from harness.faults.breaking import alter_tensors
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Round lora_B to bf16."""
    alter_tensors(site.adapter, lambda key, tensor: tensor.bfloat16() if ".lora_B." in key else tensor)


FAULT: Fault = MergeFault(
    breaks="rounds lora_B to bf16",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/exact"}),
    plant=plant,
)
