"""Samples end at tokens that are no stop tokens: ids of another vocabulary."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

WRONG = (10, 60)
"""The first id that ends a sample, and the first after those."""


def plant(patches: ExitStack) -> None:
    """Let other tokens end a sample."""
    import torch
    from transformers.generation.stopping_criteria import EosTokenCriteria

    def make(original: Any) -> Any:
        def init(self: Any, eos_token_id: Any) -> None:
            original(self, torch.arange(*WRONG, device=getattr(eos_token_id, "device", None)))

        return init

    replace(patches, EosTokenCriteria, "__init__", make)


FAULT: Fault = LibraryFault(
    breaks="stops at tokens that are no stop tokens",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
