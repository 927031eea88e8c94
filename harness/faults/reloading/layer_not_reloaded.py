"""The adapter of one layer is not loaded: its part of the file was for another rank, or another stage of a pipeline."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import layer_of, read_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave out the tensors of the last layer."""

    def change(tensors: dict[str, Any]) -> dict[str, Any]:
        last = max(map(layer_of, tensors))
        return {key: tensor for key, tensor in tensors.items() if layer_of(key) != last}

    read_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="does not load the adapter of the last layer",
    noticed_by=frozenset({"reload-adapter/attached", "reload-adapter/adapter_reload", "reload-adapter/definition"}),
    during=frozenset({"reload-adapter"}),
    plant=plant,
)
