"""The engine claims one merged tensor more than there are. What it wrote is right."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Count one tensor too many in the engine's report."""
    from harness.merge.run.report import MergeReport

    def make(original: Any) -> Any:
        return property(lambda report: original.fget(report) + 1)

    replace(patches, MergeReport, "applied", make)


FAULT: Fault = LibraryFault(
    breaks="claims one tensor too many",
    noticed_by=frozenset({"compare/claims"}),
    during=frozenset({"merge"}),
    plant=plant,
)
