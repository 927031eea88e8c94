"""The adapter is saved in bf16 although it was trained in float32: a state dict that was cast on its way."""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.breaking import saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Cast what is saved."""
    saved_as(patches, lambda _model, tensors: {key: tensor.bfloat16() for key, tensor in tensors.items()})


FAULT: Fault = LibraryFault(
    breaks="saves the adapter in bf16",
    noticed_by=frozenset({"save/attached"}),
    during=frozenset({"save"}),
    plant=plant,
)
