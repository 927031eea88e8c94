"""The embedding has more rows than there are tokens: padded for the GPU while it was trained, and saved like that."""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_tensors
from harness.faults.fault import Fault, MergeFault, Site

MULTIPLE = 64


def plant(site: Site) -> None:
    """Write a right merge whose embedding is padded with zeros to a multiple of 64 rows."""
    from torch.nn.functional import pad

    def change(key: str, tensor: Any) -> Any:
        return pad(tensor, (0, 0, 0, -len(tensor) % MULTIPLE)) if key.endswith("embed_tokens.weight") else tensor

    site.write(site.deltas)
    alter_tensors(site.merged, change)


FAULT: Fault = MergeFault(
    breaks="pads the embedding with rows that no token has",
    where="merged",
    noticed_by=frozenset({"reload-merged", "compare/untouched_bytes"}),
    plant=plant,
)
