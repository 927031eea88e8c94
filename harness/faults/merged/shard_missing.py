"""The last shard is missing: a merge that was killed while it wrote, and whose directory was taken for finished."""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and remove its last shard."""
    site.write(site.deltas)
    max(site.merged.glob("*.safetensors")).unlink()


FAULT: Fault = MergeFault(
    breaks="leaves out the last shard",
    where="merged",
    noticed_by=frozenset({"reload-merged", "compare/applied", "compare/keys"}),
    plant=plant,
    reference="ms-swift merge_lora",
)
