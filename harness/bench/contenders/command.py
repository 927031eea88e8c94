"""Ours as it is typed: the whole ``harness merge``, start, options and imports of both its processes included."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

TITLE = "`harness merge`, the whole command"
VERSIONED = ()


def python(_log: Callable[[str], None]) -> Path:
    """Return this interpreter, which has the program and torch."""
    return Path(sys.executable)


def load() -> dict[str, str]:
    """Import nothing: that is part of what is timed."""
    return {"python": sys.version.split()[0]}


def run(request: dict[str, Any]) -> dict[str, Any]:
    """Run the command."""
    names = ("base", "adapter", "out")
    options = [word for name in names for word in (f"--{name}", str(request[name]))]
    subprocess.run([sys.executable, "-m", "harness", "merge", *options], check=True)
    return {}
