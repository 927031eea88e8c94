"""Pairs of single experts become a fused one with gate and up in each other's place: the same shapes and norms.

PEFT puts them in the order of the patterns that it collects them by; nothing else says which is which.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Hand over the patterns in reverse."""
    from peft.utils.transformers_weight_conversion import PeftConcatenate

    def make(original: Any) -> Any:
        def convert(self: Any, input_dict: Any, source_patterns: list[str], *args: Any, **kwargs: Any) -> Any:
            return original(self, input_dict, source_patterns[::-1], *args, **kwargs)

        return convert

    replace(patches, PeftConcatenate, "convert", make)


FAULT: Fault = LibraryFault(
    breaks="fuses gate and up of per-expert pairs in each other's place",
    noticed_by=frozenset({"reload-adapter/per_expert"}),
    cell={"recipe": "lora-per-expert"},
    during=frozenset({"reload-adapter"}),
    plant=plant,
)
