"""The adapter says that PEFT 0.21.2 made it, and 0.18.1 did: a configuration that was saved again and kept its tensors.

All its experts' parameters are square, so no shape contradicts it (peft#3165).
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Facts, Fault, MergeFault, Site


def applies(facts: Facts) -> bool:
    """What PEFT 0.21.2 writes is standard, so it is wrong of the others."""
    return facts.io_layout == "swapped"


def plant(site: Site) -> None:
    """Name PEFT 0.21.2 as the adapter's maker."""

    def change(config: dict[str, Any]) -> None:
        config["peft_version"] = "0.21.2"

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="names a release of PEFT that has the io layout the other way round than the one that made it",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"recipe": "lora-down-only", "geometry": "square-down", "stack": "tf5.5.0-peft0.18.1-trl0.25.1"},
    applies=applies,
    plant=plant,
    reference="peft#3165",
)
