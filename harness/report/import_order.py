"""What has to be said of a cell whose libraries import in one order only; pure."""

from __future__ import annotations

from harness.report.text import in_the_middle
from harness.result import CellResult


def note(result: CellResult) -> str | None:
    """Return ``imports when trl comes first; when peft does: …``; None where the usual order works."""
    stage = result.stages.get("import")
    if result.import_first is None or stage is None:
        return None
    return in_the_middle(stage.reason or f"imports when {result.import_first} comes first", 600)
