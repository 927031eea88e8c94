"""The deltas of shared experts are missing: PEFT takes their names for those of routed experts when it targets modules.

PEFT 0.19 and later rewrites targets that end in gate_proj, up_proj and down_proj. A merge that does so loses them.
"""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge without the deltas of shared experts."""
    site.write(altered(site.deltas, lambda name, delta: None if "shared_expert" in name else delta))


FAULT: Fault = MergeFault(
    breaks="drops the deltas of shared experts",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"family": "glm4_moe"},
    plant=plant,
)
