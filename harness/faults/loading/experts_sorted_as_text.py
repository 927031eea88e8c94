"""Experts are stacked in the order of their names as text: 0, 1, 10, 11, 2.

The loader sorts a checkpoint's keys before it collects the experts of a layer. With ten experts or fewer nothing shows.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Sort keys by their letters, digits too."""
    from transformers import core_model_loading

    def make(_original: Any) -> Any:
        def key(name: str) -> list[str]:
            return name.split(".")

        return key

    replace(patches, core_model_loading, "dot_natural_key", make)


FAULT: Fault = LibraryFault(
    breaks="stacks experts in the order of their numbers as text",
    noticed_by=frozenset({"load/definition"}),
    cell={"geometry": "many"},
    plant=plant,
)
