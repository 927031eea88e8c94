"""The cache keeps the prompt alone: what a step adds is used in that step and lost after it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Forget the keys and values of every token that is decoded alone."""
    from transformers.cache_utils import DynamicLayer

    def make(original: Any) -> Any:
        def update(self: Any, key_states: Any, value_states: Any, *args: Any, **kwargs: Any) -> Any:
            keys, values = original(self, key_states, value_states, *args, **kwargs)
            if key_states.shape[-2] == 1:
                self.keys, self.values = keys[..., :-1, :], values[..., :-1, :]
            return keys, values

        return update

    replace(patches, DynamicLayer, "update", make)


FAULT: Fault = LibraryFault(
    breaks="forgets in the cache what was generated",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
