"""The merged model is saved with its experts fused, as they are in memory, where the base has a tensor for each.

transformers 5 does so with ``save_original_format=False``. Loaders of the published layout find no experts.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Save what is in memory, not converted back."""
    from transformers import PreTrainedModel

    def make(original: Any) -> Any:
        def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self, *args, **{**kwargs, "save_original_format": False})

        return save_pretrained

    replace(patches, PreTrainedModel, "save_pretrained", make)


FAULT: Fault = LibraryFault(
    breaks="saves the experts of the merged model fused",
    noticed_by=frozenset({"compare/keys"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
)
