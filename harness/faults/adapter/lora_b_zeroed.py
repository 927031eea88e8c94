"""lora_B is zero everywhere, as it is before training: the adapter was saved at the start, or of another process."""

from __future__ import annotations

from harness.faults.breaking import alter_tensors
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Set lora_B to zero."""
    alter_tensors(site.adapter, lambda key, tensor: 0 * tensor if ".lora_B." in key else tensor)


FAULT: Fault = MergeFault(
    breaks="sets lora_B to zero",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
