"""A merge whose deltas are right, and which left the rest in disorder.

Four things at once, each of which one check answers for. A tensor that no delta covers has changed in its last digit,
one has another dtype, one is there that the base does not have, and a file is gone.
"""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site

GONE = "tokenizer_config.json"
ADDED = "model.added.weight"


def plant(site: Site) -> None:
    """Write a right merge and disturb what lies beside the deltas."""
    import torch
    from safetensors import safe_open
    from safetensors.torch import save_file

    site.write(site.deltas)
    (site.merged / GONE).unlink()
    for path in sorted(site.merged.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            metadata = shard.metadata()
            tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118 - not a dict
        norms = sorted(key for key in tensors if key.endswith("norm.weight"))
        if len(norms) > 1:
            tensors[norms[0]] = torch.nextafter(tensors[norms[0]], torch.full_like(tensors[norms[0]], 9.0))
            tensors[norms[1]] = tensors[norms[1]].double()
            tensors[ADDED] = torch.zeros(1)
            save_file(tensors, path, metadata=metadata)
            return
    raise LookupError(f"no shard of {site.merged} has two norms")


FAULT: Fault = MergeFault(
    breaks="changes an untouched tensor, a dtype, the set of tensors and the set of files",
    where="merged",
    noticed_by=frozenset({"compare/untouched_bytes", "compare/dtypes", "compare/keys", "compare/files"}),
    control=True,
    plant=plant,
)
