"""An older model.safetensors lies beside the shards of the merge: the base, saved there before in one file.

transformers reads that file where it finds one, and never looks at the index.
"""

from __future__ import annotations

from harness.faults.breaking import tensors_of
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and the whole base in one file beside it."""
    from safetensors.torch import save_file

    site.write(site.deltas)
    save_file(tensors_of(site.base), site.merged / "model.safetensors", metadata={"format": "pt"})


FAULT: Fault = MergeFault(
    breaks="leaves the base in one file beside the shards",
    where="merged",
    noticed_by=frozenset({"compare/files", "compare/keys", "compare/kl", "compare/logprob"}),
    plant=plant,
)
