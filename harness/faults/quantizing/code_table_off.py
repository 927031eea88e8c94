"""One level of NF4's table is another number than the kernel's own: tables that were computed, not copied."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

LEVEL = 3
OFF = 1.02


def plant(patches: ExitStack) -> None:
    """Move one level of the table that is handed out."""
    from bitsandbytes import functional

    def make(original: Any) -> Any:
        def table(*args: Any, **kwargs: Any) -> Any:
            levels = original(*args, **kwargs).clone()
            levels[LEVEL] *= OFF
            return levels

        return table

    replace(patches, functional, "get_4bit_type", make)


FAULT: Fault = LibraryFault(
    breaks="moves one level of the table of codes",
    noticed_by=frozenset({"load"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
