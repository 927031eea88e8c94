"""Weights pass through bfloat16 while they are loaded, whatever dtype was asked for."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Round every tensor to bfloat16 as it is read."""
    import torch
    from transformers import core_model_loading

    def make(original: Any) -> Any:
        def materialize(*args: Any, **kwargs: Any) -> Any:
            tensor = original(*args, **kwargs)
            return tensor.to(torch.bfloat16).to(tensor.dtype)

        return materialize

    replace(patches, core_model_loading, "_materialize_copy", make)


FAULT: Fault = LibraryFault(
    breaks="rounds every loaded weight to bfloat16",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
