"""DoRA's magnitudes get no gradient: they are detached together with the norms that divide them.

They are attached, saved and merged. They keep the values that they began with, and only directions are learnt.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Zero the gradient of each magnitude."""
    from peft.tuners.lora.dora import DoraLinearLayer

    def make(original: Any) -> Any:
        def update_layer(self: Any, *args: Any, **kwargs: Any) -> None:
            original(self, *args, **kwargs)
            self.weight.register_hook(lambda grad: grad.new_zeros(grad.shape))

        return update_layer

    replace(patches, DoraLinearLayer, "update_layer", make)


FAULT: Fault = LibraryFault(
    breaks="trains no magnitude of DoRA",
    noticed_by=frozenset({"train/gradients", "train/gradient"}),
    cell={"recipe": "lora-dora"},
    plant=plant,
)
