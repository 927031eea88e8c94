"""The engine skips one tensor and counts it as merged: a broad ``except`` around one write."""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.breaking import left_as_the_base
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave the first planned tensor as the base's."""
    left_as_the_base(patches, lambda plan, row: row.key == plan.rows[0].key)


FAULT: Fault = LibraryFault(
    breaks="skips one tensor and counts it",
    noticed_by=frozenset({"compare/applied", "compare/claims"}),
    during=frozenset({"merge"}),
    plant=plant,
)
