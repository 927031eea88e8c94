"""The merged model is loaded in bf16 whatever was asked for: a server's default, or an option that was renamed."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Ask for bf16."""
    import torch
    from transformers import PreTrainedModel

    def make(original: Any) -> Any:
        def from_pretrained(cls: Any, *args: Any, **kwargs: Any) -> Any:
            return original(cls, *args, **{**kwargs, "dtype": torch.bfloat16})

        return from_pretrained

    replace(patches, PreTrainedModel, "from_pretrained", make)


FAULT: Fault = LibraryFault(
    breaks="loads the merged model in bf16",
    noticed_by=frozenset({"compare/kl", "compare/logprob", "compare/definition"}),
    during=frozenset({"reload-merged"}),
    plant=plant,
)
