"""What two runs of the same cells must agree on."""

from __future__ import annotations

import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from harness.execution.loading import load_found

_OF_THE_RUN = frozenset({
    "started", "reused", "last_passed", "timings", "log", "node", "lost", "peak_rss_mb", "peak_vram_mb", "seconds",
    "engine_seconds", "engine_peak_memory_mb",
})  # fmt: skip
"""What says when, where and how fast, and not what came of it."""

_TIMES = re.compile(r"\d+(\.\d+)? (s|ms)\b")


def findings(out: Path) -> dict[str, Any]:
    """Return what the cells of an output directory came to, by id, without when, where and how fast.

    Raises:
        InputRefusedError: a file there is torn.
    """
    return {result.cell_id: _without(result.model_dump(mode="json")) for result in load_found([out]).results}


def _without(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {key: _without(item) for key, item in value.items() if key not in _OF_THE_RUN}
    if isinstance(value, list):
        return [_without(item) for item in value]
    return _TIMES.sub("some time", value) if isinstance(value, str) else value
