"""Ours: ``plan_merge`` and ``merge``, as a training script would call them."""

from __future__ import annotations

import inspect
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

    import harness.merge.engine

    return {"torch": torch.__version__, "engine": harness.merge.engine.__name__}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Merge; ``accumulate`` is passed on where it is asked for.

    Raises:
        NotImplementedError: the engine has no such option.
    """
    from harness.merge import merge, plan_merge

    settings: list[dict[str, Any]] = [{}, {}]
    if "accumulate" in request:
        offered = ["accumulate" in inspect.signature(function).parameters for function in (plan_merge, merge)]
        if not any(offered):
            raise NotImplementedError("this engine offers no --accumulate")
        settings[offered.index(True)]["accumulate"] = request["accumulate"]
    started = time.perf_counter()
    plan = plan_merge(Path(request["base"]), Path(request["adapter"]), **settings[0])
    planned = time.perf_counter() - started
    report = merge(plan, Path(request["out"]), **settings[1])
    return {"plan_seconds": round(planned, 4), "applied": report.applied, "attempted": report.attempted}
