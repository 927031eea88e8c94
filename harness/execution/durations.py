"""How long cells took, read from results that lie somewhere: for plans, which need no more of them."""

from __future__ import annotations

import math
from collections.abc import Iterable
from pathlib import Path

from harness.execution.suspicious_json import read_json


def recorded_seconds(folders: Iterable[Path]) -> dict[str, float]:
    """Return how long each cell took, in seconds, by its id; the file that was written last counts.

    A file that is no result of a cell says nothing here: whoever judges results refuses it by its name.

    Args:
        folders: output directories, or folders of such; one that is not there holds nothing.
    """
    found: dict[str, tuple[float, float]] = {}
    for folder in folders:
        for path in sorted(folder.glob("**/cells/*/*.json")):
            try:
                value, written = read_json(path.read_bytes()), path.stat().st_mtime
            except (OSError, ValueError):
                continue
            timings = value.get("timings") if isinstance(value, dict) else None
            seconds = timings.get("cell") if isinstance(timings, dict) else None
            cell_id = value.get("cell_id") if isinstance(value, dict) else None
            if not isinstance(cell_id, str) or not isinstance(seconds, int | float) or not 0 <= seconds < math.inf:
                continue
            if written >= found.get(cell_id, (0.0, 0.0))[0]:
                found[cell_id] = (written, float(seconds))
    return {cell_id: seconds for cell_id, (_, seconds) in found.items()}
