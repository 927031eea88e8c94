"""The last token of each expert is lost in the grouped forward: groups that end one row early."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Zero the last row of each group."""
    import torch
    from transformers.integrations import moe

    def make(original: Any) -> Any:
        def linear(rows: Any, weight: Any, ends: Any, *args: Any, **kwargs: Any) -> Any:
            last = ends[torch.diff(ends, prepend=ends.new_zeros(1)) > 0] - 1
            return original(rows, weight, ends, *args, **kwargs).index_fill(0, last.long(), 0)

        return linear

    replace(patches, moe, "_grouped_linear", make)


FAULT: Fault = LibraryFault(
    breaks="drops the last token of each expert where rows are grouped",
    noticed_by=frozenset({"load/definition", "forward-paths/forward_paths"}),
    plant=plant,
)
