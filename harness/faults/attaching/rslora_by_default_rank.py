"""Rank-stabilised scaling divides by the root of the configuration's rank, and not of the pair's own.

Only pairs that a rank pattern names have another. It is the same when the adapter is reloaded.
"""

from __future__ import annotations

import math
from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Set the scaling anew once a pair is made."""
    from peft.tuners.lora.layer import LoraLayer, ParamWrapper

    def make(original: Any) -> Any:
        def update_layer(self: Any, adapter_name: str, r: int, lora_alpha: int, config: Any, **kwargs: Any) -> None:
            original(self, adapter_name, r, lora_alpha=lora_alpha, config=config, **kwargs)
            if config.use_rslora:
                self.scaling[adapter_name] = lora_alpha / math.sqrt(config.r)

        return update_layer

    replace(patches, LoraLayer, "update_layer", make)
    replace(patches, ParamWrapper, "update_layer", make)


FAULT: Fault = LibraryFault(
    breaks="scales pairs of a rank pattern by the root of another rank",
    noticed_by=frozenset({"attach/attached", "save/definition"}),
    cell={"recipe": "lora-patterns"},
    plant=plant,
)
