"""The adapter has no configuration: copied by a pattern that took the weights alone. Its scaling is anybody's guess."""

from __future__ import annotations

from harness.faults.breaking import ADAPTER_CONFIG
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Remove adapter_config.json."""
    (site.adapter / ADAPTER_CONFIG).unlink()


FAULT: Fault = MergeFault(
    breaks="loses adapter_config.json",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
