"""The last shard ends half way: a full disk, or a copy that was broken off."""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and cut its last shard in half."""
    site.write(site.deltas)
    last = max(site.merged.glob("*.safetensors"))
    content = last.read_bytes()
    last.unlink()
    last.write_bytes(content[: len(content) // 2])


FAULT: Fault = MergeFault(
    breaks="cuts the last shard in half",
    where="merged",
    noticed_by=frozenset({"reload-merged", "compare/keys"}),
    plant=plant,
)
