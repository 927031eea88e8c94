"""lora_alpha in the adapter's configuration is not the one it was trained with: edited by hand, or a template's."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Raise lora_alpha by half."""

    def change(config: dict[str, Any]) -> None:
        config["lora_alpha"] *= 1.5

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="raises lora_alpha in the adapter's configuration",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
)
