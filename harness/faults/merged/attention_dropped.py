"""The deltas of attention are missing, those of experts are there: a merge that was written for experts alone."""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge without the deltas of attention."""
    site.write(altered(site.deltas, lambda name, delta: None if "attn" in name else delta))


FAULT: Fault = MergeFault(
    breaks="drops the deltas of attention",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
