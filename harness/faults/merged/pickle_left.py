"""An older pytorch_model.bin lies beside the shards: the base's, which loaders without safetensors prefer."""

from __future__ import annotations

from harness.faults.breaking import tensors_of
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge and the whole base as a pickle beside it."""
    import torch

    site.write(site.deltas)
    torch.save(tensors_of(site.base), site.merged / "pytorch_model.bin")


FAULT: Fault = MergeFault(
    breaks="leaves the base as a pickle beside the shards",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    plant=plant,
)
