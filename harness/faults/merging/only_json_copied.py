"""The engine copies JSON files and chat templates beside the weights and loses all others.

A licence, a model card, a tokenizer's merges or its model, and code that config.json names are gone then.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

KNOWN = frozenset({".json", ".jinja"})


def plant(patches: ExitStack) -> None:
    """Skip every other kind of file where the engine copies them."""
    from harness.merge.run import engine

    def make(original: Any) -> Any:
        def copy_file(source: Any, target: Any, **options: Any) -> None:
            if source.suffix in KNOWN:
                original(source, target, **options)

        return copy_file

    replace(patches, engine, "copy_file", make)


FAULT: Fault = LibraryFault(
    breaks="copies no file but JSON and chat templates",
    noticed_by=frozenset({"compare/files"}),
    during=frozenset({"merge"}),
    plant=plant,
)
