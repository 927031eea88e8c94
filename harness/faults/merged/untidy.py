"""A merge whose deltas are right, and which left the rest in disorder.

Four things at once, each of which one check answers for. A tensor that no delta covers has changed in its last digit,
one has another dtype, one is there that the base does not have, and a file is gone.
"""

from __future__ import annotations

from typing import Any

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
    left = [_last_digit, _another_dtype]
    for path in sorted(site.merged.glob("*.safetensors")):
        with safe_open(path, framework="pt") as shard:
            metadata = shard.metadata()
            tensors = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118 - not a dict
        norms = sorted(key for key in tensors if key.endswith("norm.weight"))
        changes = dict(zip(norms, left, strict=False))
        if not changes:
            continue
        tensors |= {key: change(tensors[key]) for key, change in changes.items()}
        if len(left) > len(changes):
            left = left[len(changes) :]
            save_file(tensors, path, metadata=metadata)
            continue
        tensors[ADDED] = torch.zeros(1)
        save_file(tensors, path, metadata=metadata)
        return
    raise LookupError(f"{site.merged} has no two norms")


def _last_digit(tensor: Any) -> Any:
    import torch

    return torch.nextafter(tensor, torch.full_like(tensor, 9.0))


def _another_dtype(tensor: Any) -> Any:
    return tensor.double()


FAULT: Fault = MergeFault(
    breaks="changes an untouched tensor, a dtype, the set of tensors and the set of files",
    where="merged",
    noticed_by=frozenset({"compare/untouched_bytes", "compare/dtypes", "compare/keys", "compare/files"}),
    control=True,
    plant=plant,
)
