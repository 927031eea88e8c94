"""The biases of an adapter are not loaded: only what has the name of a LoRA is."""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.breaking import read_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave out every bias that is read."""
    read_as(patches, lambda tensors: {key: tensor for key, tensor in tensors.items() if not key.endswith(".bias")})


FAULT: Fault = LibraryFault(
    breaks="loads an adapter without its biases",
    noticed_by=frozenset({"reload-adapter/attached", "reload-adapter/adapter_reload"}),
    during=frozenset({"reload-adapter"}),
    cell={"family": "glm4_moe", "recipe": "lora-bias"},
    plant=plant,
)
