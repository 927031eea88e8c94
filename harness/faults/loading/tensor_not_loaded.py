"""One weight is not taken from the checkpoint, and the loader says so to those who ask it."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

LEFT_OUT = "lm_head.weight"


def plant(patches: ExitStack) -> None:
    """Pass over the output matrix when parameters are set."""
    from transformers import core_model_loading

    def make(original: Any) -> Any:
        def set_param(model: Any, target_name: str, *args: Any, **kwargs: Any) -> None:
            if target_name != LEFT_OUT:
                original(model, target_name, *args, **kwargs)

        return set_param

    replace(patches, core_model_loading, "set_param_for_module", make)


FAULT: Fault = LibraryFault(
    breaks="leaves one weight at its initial values, and says so",
    noticed_by=frozenset({"load"}),
    plant=plant,
)
