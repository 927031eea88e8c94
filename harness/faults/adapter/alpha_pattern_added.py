"""The adapter's configuration has an alpha of its own for one kind of Linear, with which it was not trained."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Double the alpha of all Linears that are called as the first one is."""
    leaf = min(name for name in site.deltas if ":" not in name).rpartition(".")[2]

    def change(config: dict[str, Any]) -> None:
        config["alpha_pattern"] = {leaf: 2 * config["lora_alpha"]}

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="adds an alpha_pattern to the adapter's configuration",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
