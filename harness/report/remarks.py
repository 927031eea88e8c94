"""What has to be said beside a cell's verdict: an order of imports, and what its release does not offer; pure."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report.text import in_the_middle, one_line
from harness.result import CellResult

_LIMIT = 600


LORA_ON = "lora-on-"
"""What the names of things begin with that PEFT puts no LoRA on; the others are forwards of experts."""


def remarks(result: CellResult) -> Iterator[str]:
    """Yield ``imports when trl comes first; when peft does: …``, and a line for each thing that could not be tried."""
    stage = result.stages.get("import")
    if result.import_first is not None and stage is not None:
        yield in_the_middle(stage.reason or f"imports when {result.import_first} comes first", _LIMIT)
    for name, reason in sorted(result.not_possible.items()):
        what = f"a LoRA on {name.removeprefix(LORA_ON)}" if name.startswith(LORA_ON) else f"the forward {name}"
        why = one_line(reason, _LIMIT).rstrip(".")
        yield f"not tried: {what}, which is not possible on this stack: {why}. The verdict does not depend on it."
