"""No shard says whose tensors it holds: written without the ``format`` entry, on which transformers 4 insists."""

from __future__ import annotations

from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose shards have tensors and nothing else in their headers."""
    from safetensors.torch import load_file, save_file

    site.write(site.deltas)
    for path in sorted(site.merged.glob("*.safetensors")):
        tensors = {key: tensor.clone() for key, tensor in load_file(path).items()}
        save_file(tensors, path)


FAULT: Fault = MergeFault(
    breaks="writes shards that do not say that they are torch's",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
)
