"""All tensors lose a part of their prefix: written under the names that they have in memory.

The reference engine promises the base's own names. This release loads both, and others need not.
"""

from __future__ import annotations

from harness.faults.breaking import renamed_tensors
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge under ``model.`` in place of ``model.language_model.``."""
    site.write(site.deltas)
    renamed_tensors(site.merged, lambda key: key.replace("model.language_model.", "model.", 1))


FAULT: Fault = MergeFault(
    breaks="writes all tensors under another prefix than the base's",
    where="merged",
    noticed_by=frozenset({"compare/keys"}),
    cell={"family": "qwen3_5_moe"},
    plant=plant,
)
