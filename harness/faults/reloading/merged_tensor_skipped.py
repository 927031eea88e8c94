"""transformers finds one tensor of the merged model missing, initialises it at random, and goes on with a warning."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Take one tensor of attention out of what the loader has read."""
    from transformers import modeling_utils

    def make(original: Any) -> Any:
        def convert_and_load_state_dict_in_model(*args: Any, state_dict: Any, **kwargs: Any) -> Any:
            state_dict.pop(min(key for key in state_dict if "attn" in key))
            return original(*args, state_dict=state_dict, **kwargs)

        return convert_and_load_state_dict_in_model

    replace(patches, modeling_utils, "convert_and_load_state_dict_in_model", make)


FAULT: Fault = LibraryFault(
    breaks="leaves one tensor of the merged model as it was initialised, and says so",
    noticed_by=frozenset({"reload-merged"}),
    during=frozenset({"reload-merged"}),
    plant=plant,
)
