"""The embeddings have the rows of new tokens, and config.json still names the base's vocabulary."""

from __future__ import annotations

import json
from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge with the base's vocab_size."""
    known = json.loads((site.base / CONFIG).read_text())["vocab_size"]

    def change(config: dict[str, Any]) -> None:
        config["vocab_size"] = known

    site.write(site.deltas)
    alter_json(site.merged / CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="leaves the base's vocab_size in config.json",
    where="merged",
    noticed_by=frozenset({"reload-merged", "compare/files"}),
    cell={"recipe": "lora-resized"},
    plant=plant,
)
