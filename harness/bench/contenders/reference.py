"""Ours: ``plan_merge`` and ``merge``, as a training script would call them."""

from __future__ import annotations

import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

TITLE = "`harness merge`, float32"
VERSIONED = ("torch",)


def python(_log: Callable[[str], None]) -> Path:
    """Return this interpreter, which has torch."""
    return Path(sys.executable)


def load() -> dict[str, str]:
    """Import everything that merging imports."""
    import torch

    import harness.merge.run.engine

    return {"torch": torch.__version__, "engine": harness.merge.run.engine.__name__}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Merge; ``accumulate`` is passed on where it is asked for."""
    from harness.merge import merge, plan_merge

    started = time.perf_counter()
    plan = plan_merge(Path(request["base"]), Path(request["adapter"]))
    planned = time.perf_counter() - started
    report = merge(plan, Path(request["out"]), accumulate=request.get("accumulate", "float32"))
    return {"plan_seconds": round(planned, 4), "applied": report.applied, "attempted": report.attempted}
