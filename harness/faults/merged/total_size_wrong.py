"""The index declares another total size than the shards have: one that was kept from a checkpoint of another dtype.

Loaders plan their memory by it.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import INDEX, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose index declares half of its size."""

    def change(index: dict[str, Any]) -> None:
        index["metadata"]["total_size"] //= 2

    site.write(site.deltas)
    alter_json(site.merged / INDEX, change)


FAULT: Fault = MergeFault(
    breaks="declares half of the size that the shards have",
    where="merged",
    noticed_by=frozenset({"compare/keys"}),
    plant=plant,
)
