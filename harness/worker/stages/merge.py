"""Merging with the cell's engine, and keeping what the engine says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.contract.cell_fields import BPacking
from harness.worker.request import Request

ENGINE_REPORT = "engine.json"


def merge_with_engine(
    request: Request, *, out: Path, b_packing: BPacking | None, base: Path | None = None
) -> dict[str, Any]:
    """Merge the saved adapter into the base and return the engine's own claims.

    Args:
        request: the cell.
        out: the directory to publish; must not exist.
        base: another base than the cell's.
        b_packing: what the engine is told about lora_B's packing; None lets it decide, as users do.

    Raises:
        harness.merge.MergeError: the engine refused; nothing was published.
    """
    from harness.merge import merge, plan_merge

    report = merge(plan_merge(base or request.base, request.adapter, b_packing=b_packing), out)
    return {"engine_applied": report.applied, "attempted": report.attempted, "fallback": None}
