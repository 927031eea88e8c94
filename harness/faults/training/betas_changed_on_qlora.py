"""As ``betas-changed``, where TRL keeps the LoRA in bfloat16: a step is rounded there by more than betas move it."""

from __future__ import annotations

from harness.faults.fault import Fault, LibraryFault
from harness.faults.training.betas_changed import plant

FAULT: Fault = LibraryFault(
    breaks="changes the optimizer's betas, of LoRA weights in bfloat16",
    noticed_by=frozenset({"train/update"}),
    cell={"recipe": "qlora4", "geometry": "blocks"},
    plant=plant,
)
