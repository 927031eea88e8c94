"""The adapter says that PEFT 0.18.1 made it, which had the parts of experts the other way round (peft#3165).

All its experts' parameters are square, so no shape contradicts it. A converter that keeps the version does this.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Facts, Fault, MergeFault, Site


def applies(facts: Facts) -> bool:
    """What PEFT 0.18.1 wrote is swapped, so it is wrong of the others."""
    return facts.io_layout == "standard"


def plant(site: Site) -> None:
    """Name PEFT 0.18.1 as the adapter's maker."""

    def change(config: dict[str, Any]) -> None:
        config["peft_version"] = "0.18.1"

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="names a release of PEFT that had the io layout the other way round, where shapes do not tell",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"recipe": "lora-down-only", "geometry": "square-down"},
    applies=applies,
    plant=plant,
    reference="peft#3165",
)
