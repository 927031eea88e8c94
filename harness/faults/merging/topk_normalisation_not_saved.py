"""The configuration of a merged model is saved without ``norm_topk_prob``, which another release takes to be false.

Only what differs from the class's defaults is written. The defaults are those of whoever reads it.
"""

from __future__ import annotations

from contextlib import ExitStack
from typing import Any

from harness.faults.breaking import CONFIG, alter_json
from harness.faults.fault import Fault, LibraryFault
from harness.faults.places import after_saving_merged


def plant(patches: ExitStack) -> None:
    """Take the setting out of what a merged model saves."""

    def change(config: dict[str, Any]) -> None:
        for section in (config, config.get("text_config") or {}):
            section.pop("norm_topk_prob", None)

    after_saving_merged(patches, lambda directory: alter_json(directory / CONFIG, change))


FAULT: Fault = LibraryFault(
    breaks="saves the merged model's configuration without the normalisation of routing weights",
    noticed_by=frozenset({"compare/files", "compare/kl", "compare/logprob"}),
    cell={"engine": "peft"},
    plant=plant,
)
