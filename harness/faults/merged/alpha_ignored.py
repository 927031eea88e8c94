"""lora_alpha is left out of the scaling, so that every delta is half of what it should be: alpha is twice the rank."""

from __future__ import annotations

from harness.faults.breaking import altered
from harness.faults.fault import Fault, MergeFault, Site

LEFT = 0.5


def plant(site: Site) -> None:
    """Write a merge with half of every delta."""
    site.write(altered(site.deltas, lambda _name, delta: LEFT * delta))


FAULT: Fault = MergeFault(
    breaks="halves every delta",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
