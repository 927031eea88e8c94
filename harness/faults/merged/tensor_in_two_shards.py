"""One tensor lies in two shards, merged in one and the base's in the other: loaders take the one they read last."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_shards, covered_keys, tensors_of
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and put the base's version of a merged tensor into another shard too."""
    site.write(site.deltas)
    key, base = covered_keys(site)[0], tensors_of(site.base)
    done: list[str] = []

    def change(tensors: dict[str, Any]) -> dict[str, Any] | None:
        if key in tensors or done:
            return None
        done.append(key)
        return {**tensors, key: base[key]}

    alter_shards(site.merged, change)


FAULT: Fault = MergeFault(
    breaks="writes one tensor into two shards",
    where="merged",
    noticed_by=frozenset({"compare/keys"}),
    plant=plant,
)
