"""transformers' grouped forward of experts multiplies in bfloat16, whatever the model's dtype.

Releases of torch had a grouped product for that dtype alone.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Multiply what is grouped in bfloat16."""
    import torch
    from transformers.integrations import moe

    def make(original: Any) -> Any:
        def grouped(rows: Any, weight: Any, *args: Any, **kwargs: Any) -> Any:
            product = original(rows.to(torch.bfloat16), weight.to(torch.bfloat16), *args, **kwargs)
            return product.to(rows.dtype)

        return grouped

    replace(patches, moe, "_grouped_mm", make)


FAULT: Fault = LibraryFault(
    breaks="multiplies grouped experts in bfloat16",
    noticed_by=frozenset({"forward-paths/forward_paths"}),
    plant=plant,
)
