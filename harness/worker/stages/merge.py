"""Merging with the cell's engine, and keeping what the engine says of itself."""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.engines.engine import Job, engine
from harness.worker.request import Request

ENGINE_REPORT = "engine.json"


class EngineExitError(RuntimeError):
    """The engine's process ended with another status than 0."""


def merge_with_engine(
    request: Request, *, out: Path, base: Path | None = None, adapter: Path | None = None
) -> dict[str, Any]:
    """Merge the saved adapter into the base and return what the engine says and what it took.

    Args:
        request: the cell.
        out: the directory to make; must not exist.
        base: another base than the cell's.
        adapter: another adapter than the cell's.

    Raises:
        EngineExitError: the engine's process failed.
        Exception: whatever the engine itself raises.
    """
    job = Job(
        base=base or request.base,
        adapter=adapter or request.adapter,
        out=out,
        dtype=request.dtype,
        device=request.device,
        threads=request.threads,
    )
    merged = engine(request.engine).merge(job)
    if merged.exit != 0:
        raise EngineExitError(f"the process of engine {request.engine} ended with exit code {merged.exit}")
    return {
        "engine_applied": merged.claims.applied,
        "engine_attempted": merged.claims.attempted,
        "fallback": merged.claims.fallback,
        "engine_seconds": merged.seconds,
        "engine_peak_memory_mb": merged.peak_memory_mb,
    }
