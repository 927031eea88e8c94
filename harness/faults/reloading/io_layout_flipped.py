"""An adapter from before PEFT's flip of lora_A and lora_B is loaded after it, where a square parameter fits both.

The delta of each expert is transposed, and nothing is said (peft#3165).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import NothingBrokenError
from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_reloading


def plant(patches: ExitStack) -> None:
    """Read the lora pairs of square parameters as PEFT 0.18 would."""

    def change(model: Any) -> None:
        from peft.tuners.lora.layer import ParamWrapper

        wrappers = [module for module in model.modules() if isinstance(module, ParamWrapper)]
        square = [it for it in wrappers if it.in_features == it.out_features]
        if not square:
            raise NothingBrokenError("no parameter is square")
        for module in square:
            module._did_swap_in_out_features = not module._did_swap_in_out_features  # noqa: SLF001 - PEFT keeps it there

    after_reloading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="reads square lora pairs in the other io layout",
    noticed_by=frozenset({"reload-adapter/adapter_reload", "reload-adapter/definition"}),
    cell={"geometry": "square-down"},
    during=frozenset({"reload-adapter"}),
    plant=plant,
    reference="peft#3165",
)
