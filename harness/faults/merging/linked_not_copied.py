"""The engine links to a file of the base and does not copy it: all is well until the base is moved or cleaned away."""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

NAME = "tokenizer.json"


def plant(patches: ExitStack) -> None:
    """Make a symbolic link of one file where the engine copies them."""
    from harness.merge.run import engine

    def make(original: Any) -> Any:
        def copy_file(source: Any, target: Any, **options: Any) -> None:
            if source.name == NAME:
                Path(target).symlink_to(source)
            else:
                original(source, target, **options)

        return copy_file

    replace(patches, engine, "copy_file", make)


FAULT: Fault = LibraryFault(
    breaks="links to the base's tokenizer.json",
    noticed_by=frozenset({"compare/files"}),
    during=frozenset({"merge"}),
    plant=plant,
)
