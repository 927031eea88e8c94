"""One number of the adapter is the next one when it is loaded: so little that no model says anything else for it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import read_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Move one number of the first tensor to its neighbour."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        import torch

        name = min(tensors)
        moved = tensors[name].clone()
        first = moved.flatten()[:1]
        first.copy_(torch.nextafter(first, torch.full_like(first, torch.inf)))
        return {**tensors, name: moved}

    read_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="loads one number of the adapter with another last digit",
    noticed_by=frozenset({"reload-adapter/attached"}),
    during=frozenset({"reload-adapter"}),
    plant=plant,
)
