"""The generation config of a merged model is saved with a penalty that was set for somebody's demo.

Whoever loads it and decodes greedily gets other text.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.faults.breaking import alter_json
from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace

GENERATION_CONFIG = "generation_config.json"
PENALTY = 1.3


def plant(patches: ExitStack) -> None:
    """Write a penalty of repetition into what a merged model saves."""
    from peft.tuners.tuners_utils import BaseTuner

    def change(config: dict[str, Any]) -> None:
        config["repetition_penalty"] = PENALTY

    def make(original: Any) -> Any:
        def merge_and_unload(self: Any, *args: Any, **kwargs: Any) -> Any:
            merged = original(self, *args, **kwargs)
            save = merged.save_pretrained

            def save_pretrained(save_directory: Any, *others: Any, **options: Any) -> None:
                save(save_directory, *others, **options)
                alter_json(Path(save_directory) / GENERATION_CONFIG, change)

            merged.save_pretrained = save_pretrained
            return merged

        return merge_and_unload

    replace(patches, BaseTuner, "merge_and_unload", make)


FAULT: Fault = LibraryFault(
    breaks="saves the merged model's generation config with a penalty of repetition",
    noticed_by=frozenset({"compare/files", "compare/samples"}),
    cell={"engine": "peft"},
    plant=plant,
)
