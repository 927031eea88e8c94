"""One lora pair is missing from the adapter's file, which its configuration still targets: an upload lost a part."""

from __future__ import annotations

from harness.faults.breaking import alter_shards
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Remove the first pair."""
    pair = f"{min(site.pairs)}.lora_"
    alter_shards(
        site.adapter, lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.startswith(pair)}
    )


FAULT: Fault = MergeFault(
    breaks="removes one lora pair from the adapter's file",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
