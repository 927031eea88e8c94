"""Which of our packages run in a cell: the host copies them there, and a worker that forks imports them ahead."""

from __future__ import annotations

WORKER_PACKAGES = ("contract", "worker", "merge", "experts", "engines", "faults", "definitions")
"""Subpackages of ``harness`` that run inside a cell. None of them imports anything of the host's."""
