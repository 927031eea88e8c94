"""The adapter's file ends half way: an upload or a copy that was broken off."""

from __future__ import annotations

from harness.faults.breaking import ADAPTER_FILE
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Cut the file in half."""
    path = site.adapter / ADAPTER_FILE
    content = path.read_bytes()
    path.write_bytes(content[: len(content) // 2])


FAULT: Fault = MergeFault(
    breaks="cuts the adapter's file in half",
    where="adapter",
    noticed_by=frozenset({"merge"}),
    plant=plant,
)
