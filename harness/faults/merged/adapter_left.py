"""The adapter lies beside the merged weights: a merge that is saved into the adapter's own directory.

transformers 5 loads the weights and the adapter on top of them, so that every delta counts twice.
"""

from __future__ import annotations

import shutil

from harness.faults.breaking import ADAPTER_CONFIG, ADAPTER_FILE
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge with the whole adapter beside it."""
    site.write(site.deltas)
    for name in (ADAPTER_CONFIG, ADAPTER_FILE):
        shutil.copyfile(site.adapter / name, site.merged / name)


FAULT: Fault = MergeFault(
    breaks="leaves the adapter beside the merged weights",
    where="merged",
    noticed_by=frozenset({"compare/files", "compare/kl", "compare/logprob"}),
    plant=plant,
)
