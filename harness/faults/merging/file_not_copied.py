"""The engine loses one of the files beside the weights: its list of names knows no special_tokens_map.json."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

NAME = "special_tokens_map.json"


def plant(patches: ExitStack) -> None:
    """Skip one file where the engine copies them."""
    from harness.merge.run import engine

    def make(original: Any) -> Any:
        def copy_file(source: Any, target: Any, **options: Any) -> None:
            if source.name != NAME:
                original(source, target, **options)

        return copy_file

    replace(patches, engine, "copy_file", make)


FAULT: Fault = LibraryFault(
    breaks="does not copy special_tokens_map.json",
    noticed_by=frozenset({"compare/files"}),
    during=frozenset({"merge"}),
    plant=plant,
)
