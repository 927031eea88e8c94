"""Processes whose parent has ended stay with the cell that they belong to, instead of going to init.

Linux gives an orphan to the nearest ancestor that has asked for such (``PR_SET_CHILD_SUBREAPER``, prctl(2)). A cell's
process asks. So a daemon of a living cell is in its process tree, whatever its session, group and environment: its
memory counts and it can be ended. When the cell's process has ended, its orphans go to the next that has asked. That is
the warm worker. A cell's process that has none ends them before its own end.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import signal
import time
from collections.abc import Collection
from pathlib import Path

_PR_SET_CHILD_SUBREAPER = 36
"""``linux/prctl.h``, since Linux 3.4."""
_ROUNDS = 100
_PAUSE = 0.01


def adopt_orphans() -> None:
    """Ask for the orphans among this process's descendants. Where the kernel has no such thing, all goes on without."""
    ctypes.CDLL(None).prctl(_PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0)


def children() -> dict[int, bool]:
    """Return the children of this process, born or adopted: process id to whether it runs (else it is a zombie)."""
    found = {}
    for entry in Path("/proc").iterdir():
        if not entry.name.isdigit():
            continue
        try:
            state, parent = (entry / "stat").read_text(errors="replace").rsplit(")", 1)[1].split()[:2]
        except (FileNotFoundError, ProcessLookupError):
            continue  # it has ended meanwhile
        if int(parent) == os.getpid():
            found[int(entry.name)] = state != "Z"
    return found


def end_children(spared: Collection[int] = ()) -> None:
    """Kill every child but those ``spared``, and what that makes a child of this process, until none runs.

    They are not reaped. One in an uninterruptible system call is left to the kernel after a second.
    """
    for _ in range(_ROUNDS):
        running = [pid for pid, runs in children().items() if runs and pid not in spared]
        if not running:
            return
        for pid in running:
            with contextlib.suppress(ProcessLookupError):
                os.kill(pid, signal.SIGKILL)
        time.sleep(_PAUSE)


def reap_children(spared: Collection[int] = ()) -> None:
    """Let the ids of ended children go, but for those ``spared``."""
    for pid, runs in children().items():
        if not runs and pid not in spared:
            with contextlib.suppress(ChildProcessError):
                os.waitpid(pid, os.WNOHANG)
