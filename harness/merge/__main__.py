"""``python -m harness.merge``, or ``python -I -u …/harness/merge/__main__.py`` where nothing is installed.

Started by path in isolated mode, Python puts neither this folder nor the one that holds ``harness`` on ``sys.path``.
The latter is put there here, and nothing else.
"""

from __future__ import annotations

import sys
from importlib import import_module
from pathlib import Path

if not __package__:
    sys.path.insert(0, str(Path(__file__).resolve().parents[2]))

if __name__ == "__main__":
    sys.exit(import_module("harness.merge.command").main())
