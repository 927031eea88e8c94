"""A merge in a process of its own, forked from a server that has torch imported already, so that it can be killed at
any moment.
"""

from __future__ import annotations

import multiprocessing
from multiprocessing.context import ForkServerContext
from pathlib import Path
from typing import Any

from harness.merge import merge, plan_merge


def context() -> ForkServerContext:
    """Return what starts children in a few milliseconds."""
    forkserver = multiprocessing.get_context("forkserver")
    forkserver.set_forkserver_preload(["merge_child", "harness.merge.run.engine"])
    return forkserver


def run(base: Path, adapter: Path, out: Path, options: dict[str, Any]) -> None:
    """Merge; the exit code is 0, or 1 with a traceback."""
    merge(plan_merge(base, adapter), out, **options)
