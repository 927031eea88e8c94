"""Tokens are drawn where the likeliest was asked for: ``do_sample`` of a generation_config.json that wins."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Draw every token."""
    from transformers import GenerationMixin

    def make(original: Any) -> Any:
        def sample(self: Any, *args: Any, generation_config: Any, **kwargs: Any) -> Any:
            generation_config.do_sample = True
            return original(self, *args, generation_config=generation_config, **kwargs)

        return sample

    replace(patches, GenerationMixin, "_sample", make)


FAULT: Fault = LibraryFault(
    breaks="draws tokens where the likeliest was asked for",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
