"""No merge at all: ``cp -r`` of the base, every file and directory synced. What the disk takes for as many bytes."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

from harness.bench.durable import sync_tree

TITLE = "`cp -r` and fsync"
VERSIONED = ()


def python(_log: Callable[[str], None]) -> Path:
    """Return this interpreter; nothing but the standard library is used."""
    return Path(sys.executable)


def load() -> dict[str, str]:
    """Import nothing."""
    return {"python": sys.version.split()[0]}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Copy the base."""
    subprocess.run(["cp", "-r", request["base"], request["out"]], check=True)
    sync_tree(Path(request["out"]))
    return {}
