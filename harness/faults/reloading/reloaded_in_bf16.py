"""The adapter's numbers are rounded through bf16 when they are loaded, into parameters that are float32 again."""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.breaking import read_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Round what is read."""
    read_as(patches, lambda tensors: {key: tensor.bfloat16() for key, tensor in tensors.items()})


FAULT: Fault = LibraryFault(
    breaks="rounds the adapter to bf16 when it is loaded",
    noticed_by=frozenset({"reload-adapter/attached", "reload-adapter/adapter_reload"}),
    during=frozenset({"reload-adapter"}),
    plant=plant,
)
