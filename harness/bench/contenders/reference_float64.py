"""Ours with deltas and sums in float64: slower, and exact to the last rounding."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.bench.contenders import reference

TITLE = "`harness merge --accumulate float64`"
VERSIONED = ("torch",)


def python(log: Callable[[str], None]) -> Path:
    """Return this interpreter, which has torch."""
    return reference.python(log)


def load() -> dict[str, str]:
    """Import everything that merging imports."""
    return reference.load()


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Merge."""
    return reference.run({**request, "accumulate": "float64"})
