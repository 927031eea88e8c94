"""generation_config.json names one of the two tokens that end an answer: written anew from config.json, which has one.

Judged by what the file means, as an engine is that writes it anew.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose generation_config.json has the first stop token alone."""

    def change(config: dict[str, Any]) -> None:
        config["eos_token_id"] = config["eos_token_id"][0]

    site.write(site.deltas)
    alter_json(site.merged / "generation_config.json", change)


FAULT: Fault = MergeFault(
    breaks="drops a stop token from generation_config.json",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    plant=plant,
)
