"""The base's embeddings are saved with the adapter, as PEFT does where it takes the vocabulary for a resized one.

Whoever loads the adapter gets them in place of its base's.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Have the embeddings saved, whatever was asked for."""
    from peft import peft_model

    def make(original: Any) -> Any:
        def get_peft_model_state_dict(*args: Any, **kwargs: Any) -> Any:
            return original(*args, **{**kwargs, "save_embedding_layers": True})

        return get_peft_model_state_dict

    replace(patches, peft_model, "get_peft_model_state_dict", make)


FAULT: Fault = LibraryFault(
    breaks="saves the embeddings with the adapter",
    noticed_by=frozenset({"save/attached"}),
    during=frozenset({"save"}),
    plant=plant,
)
