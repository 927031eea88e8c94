"""What has to be said beside a cell's verdict: an order of imports, and what its release does not offer; pure."""

from __future__ import annotations

from collections.abc import Iterator

from harness.report.text import in_the_middle, one_line
from harness.result import CellResult

_LIMIT = 600


def remarks(result: CellResult) -> Iterator[str]:
    """Yield ``imports when trl comes first; when peft does: …``, and ``not possible here: grouped_forward (why)``."""
    stage = result.stages.get("import")
    if result.import_first is not None and stage is not None:
        yield in_the_middle(stage.reason or f"imports when {result.import_first} comes first", _LIMIT)
    if result.not_possible:
        features = (f"{name} ({one_line(reason)})" for name, reason in sorted(result.not_possible.items()))
        yield in_the_middle(f"not possible here, which is nobody's failure: {', '.join(features)}", _LIMIT)
