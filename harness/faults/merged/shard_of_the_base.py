"""One shard is the base's: a merge that was killed over a directory of copies, and taken for finished the next time.

ms-swift and mergekit go on with what they find in the output directory.
"""

from __future__ import annotations

import shutil

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and put the base's last shard in its place."""
    site.write(site.deltas)
    last = max(site.base.glob("*.safetensors"))
    shutil.copyfile(last, site.merged / last.name)


FAULT: Fault = MergeFault(
    breaks="leaves one shard as the base's",
    where="merged",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    plant=plant,
    reference="ms-swift merge_lora",
)
