"""The engine edits the base that it was given: it rewrites the configuration where it lies, for itself to read."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Write a note into the base's config.json once the merge is done."""
    import harness.merge

    def make(original: Any) -> Any:
        def merge(plan: Any, out: Any, **options: Any) -> Any:
            report = original(plan, out, **options)
            alter_json(plan.base.root / CONFIG, lambda config: config.update(merged=True))
            return report

        return merge

    replace(patches, harness.merge, "merge", make)


FAULT: Fault = LibraryFault(
    breaks="edits the base that it was given",
    noticed_by=frozenset({"compare/files"}),
    during=frozenset({"merge"}),
    plant=plant,
)
