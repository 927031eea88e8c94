"""Two layers have one lora_A between them, as modules that were copied by reference do. It is saved twice."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import after_attaching
from harness.faults.places import lora_layers


def plant(patches: ExitStack) -> None:
    """Give a layer the lora_A of another one of its sizes."""

    def change(model: Any) -> None:
        layers = [layer for layer in lora_layers(model) if not hasattr(layer, "parameter_name")]
        first = layers[0]
        sizes = (first.in_features, first.out_features)
        second = next(it for it in reversed(layers) if (it.in_features, it.out_features) == sizes and it is not first)
        second.lora_A["default"] = first.lora_A["default"]

    after_attaching(patches, change)


FAULT: Fault = LibraryFault(
    breaks="lets two layers share one lora_A",
    noticed_by=frozenset({"save/derivative"}),
    plant=plant,
)
