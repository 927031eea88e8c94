"""The engine's manifest says of every tensor that its delta is zero. What it wrote and what it returned are right.

Whoever decides by the manifest whether a merge is worth publishing decides wrongly.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Give every row of the manifest the same status."""
    from harness.merge.run import manifest

    def make(_original: Any) -> Any:
        def status_of(_outcome: Any) -> str:
            return "zero_delta"

        return status_of

    replace(patches, manifest, "status_of", make)


FAULT: Fault = LibraryFault(
    breaks="writes a manifest that says of every tensor that it was not changed",
    noticed_by=frozenset({"compare/claims"}),
    during=frozenset({"merge"}),
    plant=plant,
)
