"""Experts that are decoded at once come out in reverse. One by one they are right."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Turn every run of experts around."""
    from harness.experts.quantization import packed

    def make(original: Any) -> Any:
        def decode_run(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **kwargs).flip(0)

        return decode_run

    replace(patches, packed, "decode_run", make)


FAULT: Fault = LibraryFault(
    breaks="decodes runs of experts in reverse",
    noticed_by=frozenset({"load"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
