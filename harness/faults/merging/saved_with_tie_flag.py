"""The merged model is saved with a configuration that ties its output matrix, which it does not.

PEFT sets the flag right where the two have come apart, and did not always. The matrix itself is written.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Set tie_word_embeddings before the model is saved."""
    from transformers import PreTrainedModel

    def make(original: Any) -> Any:
        def save_pretrained(self: Any, *args: Any, **kwargs: Any) -> Any:
            self.config.tie_word_embeddings = True
            return original(self, *args, **kwargs)

        return save_pretrained

    replace(patches, PreTrainedModel, "save_pretrained", make)


FAULT: Fault = LibraryFault(
    breaks="saves the merged model with tie_word_embeddings set",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    during=frozenset({"merge"}),
    plant=plant,
    reference="unsloth-zoo#369",
)
