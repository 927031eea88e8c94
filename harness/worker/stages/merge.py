"""Merging with the cell's engine, and keeping what the engine says of itself.

An engine is given copies of base and adapter. What its merge is judged by lies beside them. So all that it changes but
the directory that it is to make, and temporary files, is seen.
"""

from __future__ import annotations

import hashlib
import shutil
from collections.abc import Collection
from pathlib import Path
from typing import Any

from harness.engines.engine import Job, engine
from harness.worker.releases import installed_dtype_argument
from harness.worker.request import Request

ENGINE_REPORT = "engine.json"
EDITED = "edited_inputs"
"""Where a report keeps the names of files that the engine changed, added or removed and that were not its own."""
_SCRATCH = "tmp"
"""The cell's directory for temporary files, in its work directory (``harness.execution.executors.local``)."""


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
    given = out.with_name(f"{out.name}-given")
    sources = (base or request.base, adapter or request.adapter)
    copies = [Path(shutil.copytree(source, given / source.name)) for source in sources]
    own = (out, request.work / _SCRATCH, request.observation)
    before = _contents(request.work, but=own)
    job = Job(
        base=copies[0],
        adapter=copies[1],
        out=out,
        dtype=request.dtype,
        device=request.device,
        threads=request.threads,
        dtype_argument=installed_dtype_argument(),
    )
    merged = engine(request.engine).merge(job)
    if merged.exit != 0:
        raise EngineExitError(f"the process of engine {request.engine} ended with exit code {merged.exit}")
    after = _contents(request.work, but=own)
    edited = sorted(
        name.removeprefix(f"{given.name}/")
        for name in before.keys() | after.keys()
        if before.get(name) != after.get(name) and name != given.name
    )
    shutil.rmtree(given, ignore_errors=True)  # an engine may have removed it
    return {
        EDITED: edited,
        "engine_applied": merged.claims.applied,
        "engine_attempted": merged.claims.attempted,
        "fallback": merged.claims.fallback,
        "engine_seconds": merged.seconds,
        "engine_peak_memory_mb": merged.peak_memory_mb,
    }


def _contents(directory: Path, *, but: Collection[Path]) -> dict[str, str]:
    """Return what lies below a directory: path → SHA-256 of a file, and "no file" for anything else.

    Args:
        directory: the directory.
        but: what of it is left out, with all that lies below.
    """
    return {
        path.relative_to(directory).as_posix(): hashlib.sha256(path.read_bytes()).hexdigest()
        if path.is_file()
        else "no file"
        for path in directory.rglob("*")
        if not any(path.is_relative_to(place) for place in but)
    }
