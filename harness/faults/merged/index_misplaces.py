"""The index puts one tensor into a shard that does not hold it. transformers reads all shards, others believe it."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import INDEX, alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose index names another shard for one tensor."""

    def change(index: dict[str, Any]) -> None:
        places = index["weight_map"]
        key = min(places)
        places[key] = next(shard for shard in sorted(places.values()) if shard != places[key])

    site.write(site.deltas)
    alter_json(site.merged / INDEX, change)


FAULT: Fault = MergeFault(
    breaks="names a tensor in the wrong shard",
    where="merged",
    noticed_by=frozenset({"compare/keys"}),
    plant=plant,
)
