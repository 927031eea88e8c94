"""The adapter's configuration names a module that was trained in full, and its file does not hold it.

transformers#45127 and LLaMA-Factory#10832 lost such modules.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import ADAPTER_CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Name the output matrix as a module to save."""

    def change(config: dict[str, Any]) -> None:
        config["modules_to_save"] = ["lm_head"]

    alter_json(site.adapter / ADAPTER_CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="names a module to save that the file does not hold",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
    reference="transformers#45127",
)
