"""Experts are stacked last to first when they are loaded: an order that was taken from a container that has none.

Routers then send tokens to others than they learnt. Shapes, norms and names are right.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Stack the tensors of a module list in reverse."""
    from transformers.core_model_loading import MergeModulelist

    def make(original: Any) -> Any:
        def convert(self: Any, input_dict: Any, *args: Any, **kwargs: Any) -> Any:
            reversed_lists = {name: list(reversed(tensors)) for name, tensors in input_dict.items()}
            return original(self, reversed_lists, *args, **kwargs)

        return convert

    replace(patches, MergeModulelist, "convert", make)


FAULT: Fault = LibraryFault(
    breaks="stacks a layer's experts in reverse",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
