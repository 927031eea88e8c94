"""The base lies there unmerged, with the adapter beside it, as if it were a merge.

transformers 5 loads the adapter on top of the base, so the model says what was trained. Whoever reads the weights, as
llama.cpp and vLLM do, gets the base.
"""

from __future__ import annotations

import shutil

from harness.faults.breaking import ADAPTER_CONFIG, ADAPTER_FILE
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write the base with the whole adapter beside it."""
    site.write({})
    for name in (ADAPTER_CONFIG, ADAPTER_FILE):
        shutil.copyfile(site.adapter / name, site.merged / name)


FAULT: Fault = MergeFault(
    breaks="leaves base and adapter side by side and merges nothing",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/files"}),
    plant=plant,
)
