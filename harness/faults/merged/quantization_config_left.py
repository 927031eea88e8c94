"""config.json says that the merged weights are quantised: it was copied from the base that a QLoRA was trained on."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose config.json has the settings of a base in 4 bits."""

    def change(config: dict[str, Any]) -> None:
        config["quantization_config"] = {
            "quant_method": "bitsandbytes",
            "load_in_4bit": True,
            "bnb_4bit_quant_type": "nf4",
        }

    site.write(site.deltas)
    alter_json(site.merged / CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="leaves a quantization_config in config.json",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
)
