"""What holds for every test: workers, signals, threads and the time that an example may take."""

from __future__ import annotations

import os
import signal
from pathlib import Path

import psutil
import pytest
from hypothesis import HealthCheck, settings

MEMORY_OF_A_WORKER = 3 * 2**30
"""Bytes: a worker that has imported torch, and a cell of a real stack that it started."""

# A shell that starts something in the background lets it ignore Ctrl-C, and nohup a closed terminal. Children would
# inherit that, and tests that send these signals would wait for ever.
signal.signal(signal.SIGINT, signal.default_int_handler)
signal.signal(signal.SIGHUP, signal.SIG_DFL)

# Threads of torch that wait by spinning take the cores from the tests beside them.
os.environ.setdefault("OMP_WAIT_POLICY", "PASSIVE")

# How long an example takes says how busy the machine is, and nothing about the code.
settings.register_profile("busy", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("busy")


def pytest_xdist_auto_num_workers(config: pytest.Config) -> int:
    """A worker for each core that this process may use and has memory for; none for files and tests that are named."""
    if not any(Path(argument).is_dir() for argument in config.args):
        return 0
    workers = min(len(os.sched_getaffinity(0)), psutil.virtual_memory().available // MEMORY_OF_A_WORKER)
    return workers if workers > 1 else 0
