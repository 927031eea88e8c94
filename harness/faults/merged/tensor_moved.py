"""One tensor lies in another shard than the base's, and the index says so: shards that were cut anew.

Nothing is wrong with such a checkpoint but that the reference engine promises the base's own shards.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import INDEX, alter_json, alter_shards, tensors_of
from harness.faults.fault import Fault, MergeFault, Site

KEY = "lm_head.weight"


def plant(site: Site) -> None:
    """Write a right merge and move the output matrix to another shard."""
    site.write(site.deltas)
    moved = tensors_of(site.merged)[KEY]
    target: list[str] = []

    def of_index(index: dict[str, Any]) -> None:
        places = index["weight_map"]
        target.append(next(shard for shard in sorted(places.values()) if shard != places[KEY]))
        places[KEY] = target[0]

    alter_json(site.merged / INDEX, of_index)
    there = next(key for key, shard in _places(site).items() if shard == target[0])

    def of_shard(tensors: dict[str, Any]) -> dict[str, Any] | None:
        if KEY in tensors:
            return {key: tensor for key, tensor in tensors.items() if key != KEY}
        return {**tensors, KEY: moved} if there in tensors else None

    alter_shards(site.merged, of_shard)


def _places(site: Site) -> dict[str, str]:
    """Return which shard of the base holds each tensor."""
    from safetensors.torch import load_file

    return {key: path.name for path in sorted(site.base.glob("*.safetensors")) for key in load_file(path)}


FAULT: Fault = MergeFault(
    breaks="moves a tensor to another shard, the index too",
    where="merged",
    noticed_by=frozenset({"compare/keys"}),
    plant=plant,
)
