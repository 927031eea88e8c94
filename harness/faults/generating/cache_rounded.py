"""The cache keeps keys and values of what is generated in bfloat16, whatever the model computes in.

Log-probabilities move in the second digit after the point, and the likeliest token seldom changes.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Round what the cache is given of every token that is decoded alone."""
    import torch
    from transformers.cache_utils import DynamicLayer

    def make(original: Any) -> Any:
        def update(self: Any, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            if key_states.shape[-2] == 1:
                key_states, value_states = (it.to(torch.bfloat16).to(it.dtype) for it in (key_states, value_states))
            return original(self, key_states, value_states, *args, **kwargs)

        return update

    replace(patches, DynamicLayer, "update", make)


FAULT: Fault = LibraryFault(
    breaks="rounds keys and values of generated tokens in the cache to bfloat16",
    noticed_by=frozenset({"generate/cache"}),
    plant=plant,
)
