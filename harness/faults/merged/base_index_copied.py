"""The index of the base's shards lies beside a merge in one file: JSON files copied from the base after saving.

transformers reads the one file and never looks at the index. Loaders that read the index first find no shard.
"""

from __future__ import annotations

import json

from harness.faults.breaking import INDEX, tensors_of
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge in one file, and keep the index of four."""
    from safetensors.torch import save_file

    site.write(site.deltas)
    tensors = tensors_of(site.merged)
    for shard in set(json.loads((site.merged / INDEX).read_text())["weight_map"].values()):
        (site.merged / shard).unlink()
    save_file(tensors, site.merged / "model.safetensors", metadata={"format": "pt"})


FAULT: Fault = MergeFault(
    breaks="leaves an index of shards that are not there beside a merge in one file",
    where="merged",
    noticed_by=frozenset({"compare/keys"}),
    cell={"engine": "peft"},
    plant=plant,
)
