"""merge_manifest.json is an empty object: what says how the merge was made says nothing."""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge with an empty manifest."""
    site.write(site.deltas)
    (site.merged / "merge_manifest.json").write_text("{}\n")


FAULT: Fault = MergeFault(
    breaks="writes an empty merge_manifest.json",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
)
