"""The generation config of a merged model is saved with a penalty that was set for somebody's demo.

Whoever loads it and decodes greedily gets other text.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import alter_json
from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import after_saving_merged

GENERATION_CONFIG = "generation_config.json"
PENALTY = 1.3


def plant(patches: ExitStack) -> None:
    """Write a penalty of repetition into what a merged model saves."""

    def change(config: dict[str, Any]) -> None:
        config["repetition_penalty"] = PENALTY

    after_saving_merged(patches, lambda directory: alter_json(directory / GENERATION_CONFIG, change))


FAULT: Fault = LibraryFault(
    breaks="saves the merged model's generation config with a penalty of repetition",
    noticed_by=frozenset({"compare/files", "compare/samples"}),
    cell={"engine": "peft"},
    plant=plant,
)
