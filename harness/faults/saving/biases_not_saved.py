"""Biases that were trained beside a LoRA are not saved.

PEFT up to 0.20 looked for them under the name that a Linear has before it is wrapped (peft#3306).
"""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.breaking import saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave out every bias."""
    saved_as(
        patches,
        lambda _model, tensors: {key: tensor for key, tensor in tensors.items() if not key.endswith(".bias")},
    )


FAULT: Fault = LibraryFault(
    breaks="saves a LoRA without the biases that were trained beside it",
    noticed_by=frozenset({"save/attached", "merge"}),
    during=frozenset({"save"}),
    cell={"family": "glm4_moe", "recipe": "lora-bias"},
    plant=plant,
    reference="peft#3306",
)
