"""Generation takes a faster way that does not know of the adapter."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Generate without the adapter."""
    from peft import PeftModelForCausalLM

    def make(original: Any) -> Any:
        def generate(self: Any, *args: Any, **kwargs: Any) -> Any:
            with self.disable_adapter():
                return original(self, *args, **kwargs)

        return generate

    replace(patches, PeftModelForCausalLM, "generate", make)


FAULT: Fault = LibraryFault(
    breaks="switches the LoRA off in generation",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
