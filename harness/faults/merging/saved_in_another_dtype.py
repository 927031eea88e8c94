"""The merged model is cast to bf16 before it is saved, though its base is stored in float32."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Cast the model before it is saved."""
    from transformers import PreTrainedModel

    def make(original: Any) -> Any:
        def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
            return original(self.bfloat16(), *args, **kwargs)

        return save_pretrained

    replace(patches, PreTrainedModel, "save_pretrained", make)


FAULT: Fault = LibraryFault(
    breaks="saves the merged model in bf16",
    noticed_by=frozenset({"compare/dtypes", "compare/kl"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
)
