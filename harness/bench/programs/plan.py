"""Planning alone, without torch."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any


def load() -> dict[str, str]:
    """Import everything that planning imports."""
    import harness.merge

    return {"python": sys.version.split()[0], "plan": harness.merge.__name__}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Plan; return how many tensors would change.

    Raises:
        RuntimeError: torch was imported, so that what was measured is not what a plan should be.
    """
    from harness.merge import plan_merge

    plan = plan_merge(Path(request["base"]), Path(request["adapter"]))
    if "torch" in sys.modules:
        raise RuntimeError("planning imported torch")
    return {"attempted": plan.attempted, "tensors": sum(len(shard.tensors) for shard in plan.base.shards)}
