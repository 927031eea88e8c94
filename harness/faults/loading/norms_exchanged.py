"""The two norms of each layer have each other's weights: names that differ from one family to the next."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_loading
from harness.faults.places import parts


def plant(patches: ExitStack) -> None:
    """Exchange the weights of the norms before attention and after it."""

    def change(model: Any) -> None:
        for layer in parts(model, "input_layernorm", "post_attention_layernorm"):
            before, after = layer.input_layernorm.weight, layer.post_attention_layernorm.weight
            before.data, after.data = after.data, before.data

    after_loading(patches, change)


FAULT: Fault = LibraryFault(
    breaks="exchanges the weights of each layer's two norms",
    noticed_by=frozenset({"load/definition"}),
    plant=plant,
)
