"""The engine edits the adapter that it was given: it folds the scaling in before it merges, and saves that in place."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import alter_tensors
from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Double the adapter's lora_B in its file once the merge is done."""
    import harness.merge

    def make(original: Any) -> Any:
        def merge(plan: Any, out: Any, **options: Any) -> Any:
            report = original(plan, out, **options)
            root = plan.parts[0].adapter.root
            alter_tensors(root, lambda key, tensor: 2 * tensor if ".lora_B." in key else tensor)
            return report

        return merge

    replace(patches, harness.merge, "merge", make)


FAULT: Fault = LibraryFault(
    breaks="edits the adapter that it was given",
    noticed_by=frozenset({"compare/files"}),
    during=frozenset({"merge"}),
    plant=plant,
)
