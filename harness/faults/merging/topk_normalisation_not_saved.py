"""The configuration of a merged model is saved without ``norm_topk_prob``, which another release takes to be false.

Only what differs from the class's defaults is written. The defaults are those of whoever reads it.
"""

from __future__ import annotations

from contextlib import ExitStack
from pathlib import Path
from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, LibraryFault
from harness.faults.patching import replace


def plant(patches: ExitStack) -> None:
    """Take the setting out of what a merged model saves."""
    from peft.tuners.tuners_utils import BaseTuner

    def change(config: dict[str, Any]) -> None:
        for section in (config, config.get("text_config") or {}):
            section.pop("norm_topk_prob", None)

    def make(original: Any) -> Any:
        def merge_and_unload(self: Any, *args: Any, **kwargs: Any) -> Any:
            merged = original(self, *args, **kwargs)
            save = merged.save_pretrained

            def save_pretrained(save_directory: Any, *others: Any, **options: Any) -> None:
                save(save_directory, *others, **options)
                alter_json(Path(save_directory) / CONFIG, change)

            merged.save_pretrained = save_pretrained
            return merged

        return merge_and_unload

    replace(patches, BaseTuner, "merge_and_unload", make)


FAULT: Fault = LibraryFault(
    breaks="saves the merged model's configuration without the normalisation of routing weights",
    noticed_by=frozenset({"compare/files", "compare/kl", "compare/logprob"}),
    cell={"engine": "peft"},
    plant=plant,
)
