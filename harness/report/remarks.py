"""What has to be said beside a cell's verdict: imports, lost attempts, what its release does not offer; pure."""

from __future__ import annotations

from collections.abc import Iterator

from harness.counting import counted
from harness.report.text import in_the_middle, one_line
from harness.result import CellResult

_LIMIT = 600
_HOW = {
    "node": "node",
    "process": "its process on node",
    "memory": "memory of node",
    "environment": "its environment on node",
}

LORA_ON = "lora-on-"
"""What the names of things begin with that PEFT puts no LoRA on; the others are forwards of experts."""


def remarks(result: CellResult) -> Iterator[str]:
    """Yield ``imports when trl comes first; when peft does: …``, and a line for each thing that could not be tried."""
    stage = result.stages.get("import")
    if result.import_first is not None and stage is not None:
        yield in_the_middle(stage.reason or f"imports when {result.import_first} comes first", _LIMIT)
    if (again := lost(result)) is not None:
        yield again
    for name, reason in sorted(result.not_possible.items()):
        what = f"a LoRA on {name.removeprefix(LORA_ON)}" if name.startswith(LORA_ON) else f"the forward {name}"
        why = one_line(reason, _LIMIT).rstrip(".")
        yield f"not tried: {what}, which is not possible on this stack: {why}. The verdict does not depend on it."


def lost(result: CellResult) -> str | None:
    """Return ``run again after 1 loss: node 2297429112c7``; None for a cell that no node was lost with."""
    if not result.lost:
        return None
    places = ", ".join(f"{_HOW[it.how]} {it.node or 'that is not known'}" for it in result.lost)
    return f"run again after {counted(len(result.lost), 'loss', 'losses')}: {places}"
