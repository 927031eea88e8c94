"""A lora pair names a layer that the base does not have: an adapter of a deeper model. To ignore it is to lose it."""

from __future__ import annotations

from harness.faults.breaking import alter_shards, layer_of
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Rename the pairs of the last layer to one that is far beyond it."""
    last = max(map(layer_of, site.deltas))
    alter_shards(
        site.adapter,
        lambda tensors: {key.replace(f".layers.{last}.", ".layers.99."): tensor for key, tensor in tensors.items()},
    )


FAULT: Fault = MergeFault(
    breaks="names a layer that the base does not have",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
