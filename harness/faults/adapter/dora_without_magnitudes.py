"""The adapter's configuration says DoRA, and its file has no magnitudes: a saver that knew lora_A and lora_B alone."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Turn use_dora on."""

    def change(config: dict[str, Any]) -> None:
        config["use_dora"] = True

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="turns use_dora on without its tensors",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
