"""The engine leaves a temporary file in the merged directory, which a hub would publish with the rest."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Leave a file once the merge is done."""
    import harness.merge

    def make(original: Any) -> Any:
        def merge(plan: Any, out: Any, **options: Any) -> Any:
            report = original(plan, out, **options)
            (out / "model-00001.safetensors.tmp").write_bytes(bytes(64))
            return report

        return merge

    replace(patches, harness.merge, "merge", make)


FAULT: Fault = LibraryFault(
    breaks="leaves a stray file in the merged directory",
    noticed_by=frozenset({"compare/files"}),
    during=frozenset({"merge"}),
    plant=plant,
)
