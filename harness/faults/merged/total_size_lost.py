"""The index no longer declares the total size that the base's does: written by a tool that makes the key map alone.

Loaders plan their memory by it.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import INDEX, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose index declares no size."""

    def change(index: dict[str, Any]) -> None:
        index["metadata"] = {}

    site.write(site.deltas)
    alter_json(site.merged / INDEX, change)


FAULT: Fault = MergeFault(
    breaks="declares no size where the base's index does",
    where="merged",
    noticed_by=frozenset({"compare/keys"}),
    plant=plant,
)
