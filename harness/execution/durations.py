"""What cells cost, read from results that lie somewhere: for plans, which need no more of them."""

from __future__ import annotations

import math
from collections.abc import Iterable, Mapping
from pathlib import Path

from harness.execution.suspicious_json import read_json


def recorded_seconds(folders: Iterable[Path]) -> dict[str, float]:
    """Return how long each cell took, in seconds, by its id; the file that was written last counts.

    A file that is no result of a cell says nothing here: whoever judges results refuses it by its name.

    Args:
        folders: output directories, or folders of such; one that is not there holds nothing.
    """
    return {cell_id: seconds for cell_id, (seconds, _) in _recorded(folders).items()}


def recorded_costs(folders: Iterable[Path]) -> dict[str, tuple[float, float]]:
    """Return how long each cell took, in seconds, and its ``peak_rss_mb``, by its id, where both are known."""
    found = _recorded(folders)
    return {cell_id: (seconds, peak) for cell_id, (seconds, peak) in found.items() if peak is not None}


def _recorded(folders: Iterable[Path]) -> Mapping[str, tuple[float, float | None]]:
    found: dict[str, tuple[float, float, float | None]] = {}
    for folder in folders:
        for path in sorted(folder.glob("**/cells/*/*.json")):
            try:
                value, written = read_json(path.read_bytes()), path.stat().st_mtime
            except (OSError, ValueError):
                continue
            if not isinstance(value, dict):
                continue
            timings, cell_id = value.get("timings"), value.get("cell_id")
            seconds = _number(timings.get("cell") if isinstance(timings, dict) else None)
            if not isinstance(cell_id, str) or seconds is None:
                continue
            if written >= found.get(cell_id, (0.0, 0.0, None))[0]:
                found[cell_id] = (written, seconds, _number(value.get("peak_rss_mb")))
    return {cell_id: (seconds, peak) for cell_id, (_, seconds, peak) in found.items()}


def _number(value: object) -> float | None:
    """Return a finite number that is not negative; None for anything else."""
    return float(value) if isinstance(value, int | float) and 0 <= value < math.inf else None
