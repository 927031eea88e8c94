"""adapter_config.json lies beside the merged weights: files copied from the adapter's directory by a pattern.

transformers takes such a directory for an adapter, and looks for its weights.
"""

from __future__ import annotations

import shutil

from harness.faults.breaking import ADAPTER_CONFIG
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge with the adapter's configuration beside it."""
    site.write(site.deltas)
    shutil.copyfile(site.adapter / ADAPTER_CONFIG, site.merged / ADAPTER_CONFIG)


FAULT: Fault = MergeFault(
    breaks="leaves adapter_config.json beside the merged weights",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
)
