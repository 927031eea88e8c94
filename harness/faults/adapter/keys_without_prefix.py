"""The adapter's keys lack the prefix that PEFT gives them, so that a matcher which looks for it finds nothing."""

from __future__ import annotations

from harness.faults.breaking import alter_shards
from harness.faults.fault import Fault, MergeFault, Site

PREFIX = "base_model.model."


def plant(site: Site) -> None:
    """Take the prefix off all keys."""
    alter_shards(site.adapter, lambda tensors: {key.removeprefix(PREFIX): tensor for key, tensor in tensors.items()})


FAULT: Fault = MergeFault(
    breaks="takes PEFT's prefix off the adapter's keys",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
