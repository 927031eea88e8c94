"""Fused experts are written one by one with their numbers reversed, when transformers turns its conversion round."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Reverse the names that experts are written under."""
    from transformers.core_model_loading import SplitModulelist

    def make(original: Any) -> Any:
        def get_target_patterns(self: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, *args, **kwargs)[::-1]

        return get_target_patterns

    replace(patches, SplitModulelist, "get_target_patterns", make)


FAULT: Fault = LibraryFault(
    breaks="writes the experts of the merged model in reverse",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
)
