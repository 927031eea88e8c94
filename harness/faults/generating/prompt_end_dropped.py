"""The model does not see the last token of the prompt, which was kept back for a first step that never came."""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import inputs_of_generation

CUT = ("input_ids", "position_ids", "attention_mask")


def plant(patches: ExitStack) -> None:
    """Cut the last token off what the model is given of the prompt."""

    def change(inputs: dict[str, Any]) -> None:
        if inputs["input_ids"].shape[1] > 1:
            inputs |= {name: inputs[name][..., :-1] for name in CUT if inputs.get(name) is not None}

    inputs_of_generation(patches, change)


FAULT: Fault = LibraryFault(
    breaks="drops the last token of the prompt",
    noticed_by=frozenset({"generate/generation"}),
    plant=plant,
)
