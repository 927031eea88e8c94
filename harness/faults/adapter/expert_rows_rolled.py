"""lora_A's rows are shifted by one expert: each has the previous one's, and lora_B is its own.

An exporter that writes experts one by one and starts at the second would do it. Shapes and norms are right.
"""

from __future__ import annotations

from harness.faults.breaking import alter_tensors, several_experts
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Roll the rows of lora_A of fused experts by one rank."""
    rows = {f"{pair}.lora_A.weight" for pair, name in site.pairs.items() if ":" in name}
    alter_tensors(site.adapter, lambda key, tensor: tensor.roll(site.facts.rank, 0) if key in rows else tensor)


FAULT: Fault = MergeFault(
    breaks="shifts lora_A by one expert",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=several_experts,
    plant=plant,
)
