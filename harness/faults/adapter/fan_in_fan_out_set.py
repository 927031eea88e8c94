"""The adapter's configuration says that weights are stored (in, out), as GPT-2's are. PEFT refuses that of experts."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Facts, Fault, MergeFault, Site


def applies(facts: Facts) -> bool:
    """Where fused experts are targeted. Of Linears the shapes tell."""
    return facts.num_experts is not None


def plant(site: Site) -> None:
    """Turn fan_in_fan_out on."""

    def change(config: dict[str, Any]) -> None:
        config["fan_in_fan_out"] = True

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="turns fan_in_fan_out on in the adapter's configuration",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    applies=applies,
    plant=plant,
)
