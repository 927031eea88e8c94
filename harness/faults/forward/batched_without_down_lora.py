"""The batched forward of experts indexes the plain down_proj, below its LoRA.

A faster path holds on to the weight that it was given before the adapter came. The other paths read it anew.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any
from unittest import mock

from harness.faults.fault import Fault, LibraryFault


class Below:
    """Experts whose down_proj is what lies below a LoRA."""

    def __init__(self, experts: Any) -> None:
        self._experts = experts

    def __getattr__(self, name: str) -> Any:
        held = getattr(self._experts, "parametrizations", {})
        return held[name].original if name == "down_proj" and name in held else getattr(self._experts, name)


def plant(patches: ExitStack) -> None:
    """Hand the batched forward experts without the LoRA of their down_proj."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS, ExpertsInterface

    original = ALL_EXPERTS_FUNCTIONS["batched_mm"]

    def batched(self: Any, *args: Any, **kwargs: Any) -> Any:
        return original(Below(self), *args, **kwargs)

    known = ExpertsInterface._global_mapping  # noqa: SLF001 - where it is looked up
    patches.enter_context(mock.patch.dict(known, {"batched_mm": batched}))


FAULT: Fault = LibraryFault(
    breaks="leaves the LoRA of down_proj out of the experts' batched forward",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    plant=plant,
)
