"""The scale of a block in 4 bits is the largest weight of its first half: a reduction that stops at half a warp.

Whatever is larger in the other half is clipped to it. The codes decode as they should.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

BLOCK = 64
HALF = 32


def plant(patches: ExitStack) -> None:
    """Clip each block to the largest weight of its first half, before it is packed."""
    import torch
    from bitsandbytes import functional

    def make(original: Any) -> Any:
        def quantize_4bit(weights: Any, *args: Any, **kwargs: Any) -> Any:
            flat = weights.reshape(-1)
            whole = flat.numel() // BLOCK * BLOCK
            blocks = flat[:whole].reshape(-1, BLOCK)
            limit = blocks[:, :HALF].abs().amax(dim=1, keepdim=True)
            clipped = torch.cat((blocks.clamp(-limit, limit).reshape(-1), flat[whole:]))
            return original(clipped.reshape(weights.shape), *args, **kwargs)

        return quantize_4bit

    replace(patches, functional, "quantize_4bit", make)


FAULT: Fault = LibraryFault(
    breaks="takes the scale of each block in 4 bits from its first half",
    noticed_by=frozenset({"load/coding"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
