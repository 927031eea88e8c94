"""The saved configuration does not say which PEFT wrote it, as none does before 0.18.

Where all fused parameters are square nothing else tells which way round lora_A and lora_B are (peft#3165).
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import config_saved_as
from harness.faults.fault import Fault, LibraryFault


def plant(patches: ExitStack) -> None:
    """Leave peft_version out of what is saved."""

    def change(config: dict[str, Any]) -> None:
        del config["peft_version"]

    config_saved_as(patches, change)


FAULT: Fault = LibraryFault(
    breaks="leaves peft_version out of the saved configuration, where shapes do not tell",
    noticed_by=frozenset({"save/definition", "merge"}),
    cell={"recipe": "lora-down-only", "geometry": "square-down"},
    during=frozenset({"save"}),
    plant=plant,
)
