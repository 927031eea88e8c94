"""Layers 10 and 11 of a reloaded adapter get the tensors of layer 1.

A remapping of keys looks for ``layers.1`` without the dot behind it.
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import read_as
from harness.faults.fault import Fault, LibraryFault

LAYER = re.compile(r"(?<=\.layers\.)(\d)\d+(?=\.)")


def plant(patches: ExitStack) -> None:
    """Read for a layer of two digits what belongs to the layer of the first."""

    def change(tensors: dict[str, Any]) -> Mapping[str, Any]:
        def of(key: str, tensor: Any) -> Any:
            other = tensors.get(LAYER.sub(r"\1", key), tensor)
            return other if other.shape == tensor.shape else tensor

        return {key: of(key, tensor) for key, tensor in tensors.items()}

    read_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="reads layers of two digits as the layer of their first digit",
    noticed_by=frozenset({"reload-adapter/adapter_reload", "reload-adapter/definition"}),
    cell={"geometry": "many"},
    plant=plant,
)
