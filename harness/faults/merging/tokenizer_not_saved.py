"""The merged model is saved without its tokenizer, which a loader then takes from wherever it finds one."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Save no tokenizer."""
    from transformers import PreTrainedTokenizerFast

    def make(_original: Any) -> Any:
        def save_pretrained(*_args: Any, **_kwargs: Any) -> tuple[str, ...]:
            return ()

        return save_pretrained

    replace(patches, PreTrainedTokenizerFast, "save_pretrained", make)


FAULT: Fault = LibraryFault(
    breaks="saves no tokenizer",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
)
