"""As ``weights-decay``, where TRL keeps the LoRA in bfloat16: a weight is rounded there by more than it decays."""

from __future__ import annotations

from harness.faults.fault import Fault, LibraryFault
from harness.faults.training.weights_decay import plant

FAULT: Fault = LibraryFault(
    breaks="decays the weights by 0.1, of LoRA weights in bfloat16",
    noticed_by=frozenset({"train/update"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
