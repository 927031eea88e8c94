"""r in the adapter's configuration is not the rank of its tensors: the scaling alpha / r cannot be trusted."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Double r."""

    def change(config: dict[str, Any]) -> None:
        config["r"] *= 2

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="doubles r in the adapter's configuration",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
