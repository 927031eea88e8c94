"""config.json has another number of experts per token: written by a release that reads the key by another name.

All tensors are right, and the model takes one expert too many.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose config.json asks for one expert more."""

    def change(config: dict[str, Any]) -> None:
        config.get("text_config", config)["num_experts_per_tok"] += 1

    site.write(site.deltas)
    alter_json(site.merged / CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="changes num_experts_per_tok in config.json",
    where="merged",
    noticed_by=frozenset({"compare/files", "compare/kl", "compare/logprob", "compare/definition"}),
    plant=plant,
)
