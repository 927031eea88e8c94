"""The adapter's keys match nothing, because they kept the prefix of a wrapper, and what matches nothing is ignored.

PEFT loads with ``strict=False``. lora_B stays zero, so the base answers in the adapter's name (NeMo Automodel#1755).
"""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.breaking import read_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Read all keys as ``module.…``, as DistributedDataParallel has them."""
    read_as(patches, lambda tensors: {f"module.{key}": tensor for key, tensor in tensors.items()})


FAULT: Fault = LibraryFault(
    breaks="ignores adapter keys that match nothing",
    noticed_by=frozenset({"reload-adapter/adapter_reload", "reload-adapter/definition"}),
    during=frozenset({"reload-adapter"}),
    plant=plant,
    reference="NeMo Automodel#1755",
)
