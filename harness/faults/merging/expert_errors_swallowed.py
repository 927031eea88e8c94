"""Every expert's merge fails, a broad ``except`` returns the base's weight, and all are counted as merged.

unsloth-zoo did so when PEFT had turned lora_A and lora_B of experts over (unsloth#5410, unsloth-zoo#647).
"""

from __future__ import annotations

from contextlib import ExitStack

from harness.faults.breaking import left_as_the_base
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave all planned tensors of experts as the base's."""
    left_as_the_base(patches, lambda _plan, row: row.kind == "expert")


FAULT: Fault = LibraryFault(
    breaks="drops the deltas of experts and counts them",
    noticed_by=frozenset({"compare/applied", "compare/claims", "compare/kl", "compare/logprob"}),
    during=frozenset({"merge"}),
    plant=plant,
    reference="unsloth-zoo#647",
)
