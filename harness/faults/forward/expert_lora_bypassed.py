"""The experts' LoRA is never applied: the wrapper calls what it wraps, and an error on the way there was caught.

The loss still falls, by the LoRA of the rest. unsloth-zoo#606 saw none of 192 get a gradient.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Have every wrapper of a parameter call its base alone."""
    from peft.tuners.lora.layer import ParamWrapper

    def make(_original: Any) -> Any:
        def forward(self: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
            return self.base_layer(x, *args, **kwargs)

        return forward

    replace(patches, ParamWrapper, "forward", make)


FAULT: Fault = LibraryFault(
    breaks="never applies the experts' LoRA",
    noticed_by=frozenset({"train/gradients"}),
    reference="unsloth-zoo#618",
    plant=plant,
)
