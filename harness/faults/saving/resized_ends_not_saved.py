"""The embeddings of a resized vocabulary are not saved: PEFT's own look for them fails, or it was told not to.

PEFT compares the vocabulary with that of the base that an adapter names. Where it cannot read that it says that it
assumes the vocabulary was not modified.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Have embeddings left out, whatever became of the vocabulary."""
    from peft import peft_model

    def make(original: Any) -> Any:
        def get_peft_model_state_dict(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **{**kwargs, "save_embedding_layers": False})

        return get_peft_model_state_dict

    replace(patches, peft_model, "get_peft_model_state_dict", make)


FAULT: Fault = LibraryFault(
    breaks="saves an adapter of a resized vocabulary without its embeddings",
    noticed_by=frozenset({"save/attached", "reload-adapter/attached"}),
    during=frozenset({"save"}),
    cell={"recipe": "lora-resized"},
    plant=plant,
)
