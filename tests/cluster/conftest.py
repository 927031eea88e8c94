"""Tests on a real Ray cluster of two nodes on this machine: left out of the default run.

``nox -s ray`` runs them, with ``HARNESS_CLUSTER=1``. Without the variable nothing in this folder is collected.
"""

from __future__ import annotations

import os

if os.environ.get("HARNESS_CLUSTER") != "1":
    collect_ignore_glob = ["*"]
