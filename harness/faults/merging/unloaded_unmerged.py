"""The adapter is unloaded and not merged: ``unload`` in place of ``merge_and_unload``. What is saved is the base."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Unload where a merge is asked for."""
    from peft.tuners.lora import LoraModel

    def make(_original: Any) -> Any:
        def merge_and_unload(self: Any, **_: Any) -> Any:
            return self.unload()

        return merge_and_unload

    replace(patches, LoraModel, "merge_and_unload", make)


FAULT: Fault = LibraryFault(
    breaks="unloads the adapter and merges nothing",
    noticed_by=frozenset({"compare/applied", "compare/kl", "compare/logprob"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
)
