"""generation_config.json is not saved with the merged model, nor the tokens at which a chat ends (mergekit#275)."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Save no settings of generation."""
    from transformers import GenerationConfig

    def make(_original: Any) -> Any:
        def save_pretrained(*_args: Any, **_kwargs: Any) -> None:
            return None

        return save_pretrained

    replace(patches, GenerationConfig, "save_pretrained", make)


FAULT: Fault = LibraryFault(
    breaks="saves no generation_config.json",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
    reference="mergekit#275",
)
