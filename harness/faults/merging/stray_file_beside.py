"""The engine leaves its working directory beside the merged one: an offload folder with half of a model in it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Leave a directory with a file once the merge is done."""
    import harness.merge

    def make(original: Any) -> Any:
        def merge(plan: Any, out: Any, **options: Any) -> Any:
            report = original(plan, out, **options)
            folder = out.with_name("offload")
            folder.mkdir()
            (folder / "weights.dat").write_bytes(bytes(64))
            return report

        return merge

    replace(patches, harness.merge, "merge", make)


FAULT: Fault = LibraryFault(
    breaks="leaves a working directory beside the merged one",
    noticed_by=frozenset({"compare/files"}),
    during=frozenset({"merge"}),
    plant=plant,
)
