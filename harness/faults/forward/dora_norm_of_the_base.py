"""DoRA divides by the norms of the base's weight, where those of the weight with its LoRA are meant.

Both are the same as long as lora_B is zero. So training begins right, and the loss falls.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Leave the LoRA out of the norms."""
    from peft.tuners.lora.dora import DoraLinearLayer

    def make(original: Any) -> Any:
        def get_weight_norm(self: Any, weight: Any, lora_weight: Any, scaling: Any, **kwargs: Any) -> Any:
            return original(self, weight, lora_weight * 0, scaling, **kwargs)

        return get_weight_norm

    replace(patches, DoraLinearLayer, "get_weight_norm", make)


FAULT: Fault = LibraryFault(
    breaks="divides by the base's norms in DoRA",
    noticed_by=frozenset({"save/definition", "compare/exact"}),
    cell={"recipe": "lora-dora"},
    plant=plant,
)
