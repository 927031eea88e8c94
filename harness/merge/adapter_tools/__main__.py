"""``python -m harness.merge.adapter_tools``, or started by path in isolated mode; see ``harness/merge/__main__.py``."""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[3]))

if __name__ == "__main__":
    sys.exit(import_module("harness.merge.adapter_tools.command").main())
