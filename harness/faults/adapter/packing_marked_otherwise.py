"""The adapter's configuration says that lora_B is packed the other way than it is.

Newer trainers mark the packing, because no shape shows it (unsloth-zoo#1269). A wrong mark is believed.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site
from harness.faults.merged.b_packing import applies

OTHER = {"rank_major": "grouped_by_expert", "grouped_by_expert": "rank_major"}


def plant(site: Site) -> None:
    """Mark the other packing."""

    def change(config: dict[str, Any]) -> None:
        config["lora_B_layout"] = OTHER[str(site.facts.b_packing)]

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="marks lora_B as packed the other way",
    where="adapter",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    applies=applies,
    plant=plant,
    reference="unsloth-zoo#1269",
)
