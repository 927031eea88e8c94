"""The kernel for single rows leaves out the end of each row: a vectorised loop without its tail.

It runs where a token is generated from a cache. Prompts and training go by another kernel.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

TAIL = 8
BATCHED = 3


def plant(patches: ExitStack) -> None:
    """Leave out the last inputs where each sequence has one token and no gradient is asked for."""
    import bitsandbytes
    import torch

    def make(original: Any) -> Any:
        def matmul_4bit(inputs: Any, *args: Any, **kwargs: Any) -> Any:
            if inputs.ndim == BATCHED and inputs.shape[1] == 1 and not torch.is_grad_enabled():
                inputs = inputs.clone()
                inputs[..., -TAIL:] = 0
            return original(inputs, *args, **kwargs)

        return matmul_4bit

    replace(patches, bitsandbytes, "matmul_4bit", make)


FAULT: Fault = LibraryFault(
    breaks="leaves out the last inputs of Linears in 4 bits where one token is decoded",
    noticed_by=frozenset({"generate/cache"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
