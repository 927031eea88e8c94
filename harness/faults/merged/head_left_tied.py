"""Embeddings and head are no longer equal, both are written, and config.json says that they are one.

Loaders that believe it lose the head.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose config.json ties them."""

    def change(config: dict[str, Any]) -> None:
        config["tie_word_embeddings"] = True

    site.write(site.deltas)
    alter_json(site.merged / CONFIG, change)


FAULT: Fault = MergeFault(
    breaks="leaves tie_word_embeddings true where the ends are no longer equal",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    cell={"recipe": "lora-embeddings", "variant": "tied"},
    plant=plant,
)
