"""Choosing an experts forward does nothing and says nothing: a name that another release sets elsewhere."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Make the choice a call without effect."""
    from transformers import PreTrainedModel

    def make(_original: Any) -> Any:
        def choose(_self: Any, _implementation: Any) -> None:
            return None

        return choose

    replace(patches, PreTrainedModel, "set_experts_implementation", make)


FAULT: Fault = LibraryFault(
    breaks="ignores which experts forward is chosen",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    reference="unsloth#6727",
    plant=plant,
)
