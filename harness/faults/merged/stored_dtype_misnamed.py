"""config.json names another dtype than the weights are stored in, so that loaders that ask for "auto" round them.

Judged by what the file means, as an engine is that writes it anew.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site

OTHER = {"float32": "bfloat16", "bfloat16": "float32"}


def plant(site: Site) -> None:
    """Write a right merge whose config.json names another dtype."""

    def change(config: dict[str, Any]) -> None:
        for name in {"dtype", "torch_dtype"} & config.keys():
            config[name] = OTHER[config[name]]

    site.write(site.deltas)
    alter_json(site.merged / CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="names another dtype in config.json than the weights have",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    plant=plant,
)
