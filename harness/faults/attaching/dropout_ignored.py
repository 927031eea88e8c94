"""``lora_dropout`` is taken and does nothing, as in layers that cannot have one and do not say so.

The configuration keeps it. Training only fits a little faster.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Give each layer an identity for its dropout."""
    import torch
    from peft.tuners.lora.layer import LoraLayer

    def make(original: Any) -> Any:
        def update_layer(self: Any, adapter_name: str, *args: Any, **kwargs: Any) -> None:
            original(self, adapter_name, *args, **kwargs)
            self.lora_dropout[adapter_name] = torch.nn.Identity()

        return update_layer

    replace(patches, LoraLayer, "update_layer", make)


FAULT: Fault = LibraryFault(
    breaks="ignores the dropout that was asked for",
    noticed_by=frozenset({"train/modes"}),
    cell={"recipe": "lora-dropout"},
    plant=plant,
)
