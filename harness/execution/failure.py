"""A failed cell in full, for the end of a run: its phase, its reason, the end of its log, and the line that reproduces it."""

from __future__ import annotations

from pathlib import Path

from harness.execution.files import tail
from harness.execution.finalise import LOG_ENDS
from harness.result import CellResult


def failure_text(result: CellResult, *, out: Path, lines: int = 15) -> str:
    """Return what a person needs to begin with a cell that did not pass.

    Args:
        result: the cell's result.
        out: the output directory it lies in.
        lines: how many lines of its log to quote.
    """
    parts = [f"{result.cell_id}: {result.outcome} in {result.stage}", f"  reason: {_indented(result.reason or 'none')}"]
    if result.log is not None:
        log = out / result.log
        quoted = tail(log, lines=lines)
        if quoted and LOG_ENDS not in (result.reason or ""):
            parts.append(f"  log ends: {_indented(quoted)}")
        parts.append(f"  log: {log}")
    parts.append(f"  reproduce: {result.cell.reproduce}")
    return "\n".join(parts)


def _indented(text: str) -> str:
    """The first line as it is, the others below it."""
    return text.replace("\n", "\n    ")
