"""Tests in a real browser: left out of the default run, because most machines that run the tests have none.

``HARNESS_BROWSER=1 pytest tests/browser`` runs them. They need the ``playwright`` package and a Chromium on PATH.
Where either is missing they fail and say what to install. Without the variable nothing in this folder is collected.
"""

from __future__ import annotations

import os
import sys
from pathlib import Path

if os.environ.get("HARNESS_BROWSER") == "1":
    # The results that the unit tests of the report are made of.
    sys.path.insert(0, str(Path(__file__).parents[1] / "unit" / "report"))
else:
    collect_ignore_glob = ["*"]
