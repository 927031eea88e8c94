"""What has to be said of a cell in which something was replaced in a library; pure."""

from __future__ import annotations

from harness.report.text import one_line
from harness.result import CellResult


def note(result: CellResult) -> str | None:
    """Return ``with the shim x: this is not the stack as it is``; None where nothing was replaced."""
    if not result.shims:
        return None
    word = "shim" if len(result.shims) == 1 else "shims"
    return f"with the {word} {one_line(', '.join(result.shims), 1000)}: this is not the stack as it is"
