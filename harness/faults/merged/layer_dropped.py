"""The deltas of the last layer are missing: a loop over layers that ends one early."""

from __future__ import annotations

from harness.faults.breaking import altered, layer_of
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a merge without the deltas of the last layer."""
    last = max(map(layer_of, site.deltas))
    site.write(altered(site.deltas, lambda name, delta: None if layer_of(name) == last else delta))


FAULT: Fault = MergeFault(
    breaks="drops the deltas of the last layer",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
