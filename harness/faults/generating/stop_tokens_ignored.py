"""Samples run past their end, without the stop tokens of generation_config.json."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Let no stop token end a sample."""
    import torch
    from transformers.generation.stopping_criteria import EosTokenCriteria

    def make(original: Any) -> Any:
        def ended(self: Any, *args: Any, **kwargs: Any) -> Any:
            return torch.zeros_like(original(self, *args, **kwargs))

        return ended

    replace(patches, EosTokenCriteria, "__call__", make)


FAULT: Fault = LibraryFault(
    breaks="ignores stop tokens",
    noticed_by=frozenset({"generate/generation"}),
    reference="unsloth-zoo#647",
    plant=plant,
)
