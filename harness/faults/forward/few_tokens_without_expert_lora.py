"""Fewer tokens than experts take a fast path, which knows nothing of the experts' LoRA.

It is made for decoding. Training, and whatever has long inputs, never takes it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Call the plain experts where there are fewer tokens than experts."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(original: Any) -> Any:
        def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            if x.numel() // x.shape[-1] < self.num_experts:
                return self.base_layer(x, *args, **kwargs)
            return original(self, x, *args, **kwargs)

        return forward

    replace(patches, ParamWrapper, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="leaves the experts' LoRA out where there are fewer tokens than experts",
    noticed_by=frozenset({"generate/generation", "generate/cache"}),
    plant=plant,
)
