"""The adapter's configuration has a rank of its own for one kind of Linear, which its tensors do not have."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Ask for twice the rank in all Linears that are called as the first one is."""
    leaf = min(name for name in site.deltas if ":" not in name).rpartition(".")[2]

    def change(config: dict[str, Any]) -> None:
        config["rank_pattern"] = {leaf: 2 * config["r"]}

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="adds a rank_pattern that does not fit",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
