"""generation_config.json is missing, and with it the second token at which a chat model ends its answers.

unsloth-zoo and mergekit did not write it (unsloth-zoo#647, mergekit#275).
"""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and remove its generation_config.json."""
    site.write(site.deltas)
    (site.merged / "generation_config.json").unlink()


FAULT: Fault = MergeFault(
    breaks="loses generation_config.json",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
    reference="unsloth-zoo#647",
)
