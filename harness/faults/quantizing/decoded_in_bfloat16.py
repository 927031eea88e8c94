"""What codes mean is rounded to bfloat16 when it is decoded, whatever dtype it is returned in."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Round all that bitsandbytes decodes from 4 bits."""
    import torch
    from bitsandbytes import functional

    def make(original: Any) -> Any:
        def dequantize(*args: Any, **kwargs: Any) -> Any:
            weights = original(*args, **kwargs)
            return weights.to(torch.bfloat16).to(weights.dtype)

        return dequantize

    replace(patches, functional, "dequantize_4bit", make)


FAULT: Fault = LibraryFault(
    breaks="rounds decoded weights to bfloat16",
    noticed_by=frozenset({"load"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
