"""tokenizer_config.json pads on the other side: a trainer's setting that was saved with the tokenizer.

Judged by what the tokenizer does, as an engine is that writes it anew.
"""

from __future__ import annotations

from typing import Any

from harness.faults.breaking import alter_json
from harness.faults.fault import Fault, MergeFault, Site


def plant(site: Site) -> None:
    """Write a right merge whose tokenizer pads on the left."""

    def change(config: dict[str, Any]) -> None:
        config["padding_side"] = "left"

    site.write(site.deltas)
    alter_json(site.merged / "tokenizer_config.json", change)


FAULT: Fault = MergeFault(
    breaks="changes the padding side of the tokenizer",
    where="merged",
    noticed_by=frozenset({"compare/files"}),
    cell={"engine": "peft"},
    plant=plant,
)
