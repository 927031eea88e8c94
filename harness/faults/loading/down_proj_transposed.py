"""Experts' down_proj is turned over when it is loaded, where it is square and no shape tells."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

TURNED = "down_proj"


def plant(patches: ExitStack) -> None:
    """Transpose each expert of a stacked down_proj."""
    from transformers.core_model_loading import MergeModulelist

    def make(original: Any) -> Any:
        def convert(self: Any, *args: Any, **kwargs: Any) -> Any:
            stacked = original(self, *args, **kwargs)
            return {name: it.mT.contiguous() if name.endswith(TURNED) else it for name, it in stacked.items()}

        return convert

    replace(patches, MergeModulelist, "convert", make)


FAULT: Fault = LibraryFault(
    breaks="transposes the experts' square down_proj",
    noticed_by=frozenset({"load/definition"}),
    cell={"geometry": "square-down"},
    plant=plant,
)
