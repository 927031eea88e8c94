"""How much memory a cell's processes use, and whether the kernel ran out of it.

The resident sizes of a process tree are cheap to read. They count shared pages once per process: too much, never too
little. So a limit is first held against their sum. Only where that is over the limit is the proportional set size (PSS)
read. It divides shared pages among those who map them, which is what the limit means, and takes milliseconds per
process.
"""

from __future__ import annotations

from collections.abc import Iterable
from pathlib import Path

import psutil

MIB = 1024 * 1024


def tree(pid: int) -> list[psutil.Process]:
    """Return the process ``pid`` and its descendants, as far as they are still there."""
    try:
        root = psutil.Process(pid)
        return [root, *root.children(recursive=True)]
    except psutil.NoSuchProcess:
        return []


def kill(processes: Iterable[psutil.Process]) -> None:
    """Kill those that are still there. An id that has been given to another process since is not hit."""
    for process in processes:
        try:
            process.kill()
        except (psutil.NoSuchProcess, psutil.AccessDenied):
            continue


def resident_mb(processes: list[psutil.Process]) -> float:
    """Return the sum of resident set sizes in MiB, pages shared within the tree counted once per process."""
    total = 0
    for process in processes:
        try:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MIB


def proportional_mb(processes: list[psutil.Process]) -> float:
    """Return the sum of proportional set sizes in MiB.

    Of a process that does not let itself be read, the resident size counts.
    """
    total = 0
    for process in processes:
        try:
            total += process.memory_full_info().pss
        except psutil.AccessDenied:
            total += process.memory_info().rss
        except psutil.NoSuchProcess:
            continue
    return total / MIB


def kernel_oom_kills(*, proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many processes the kernel has killed for memory in this process's control group, or None if unknown.

    Read from ``memory.events`` (cgroup v2) or ``memory.oom_control`` (v1), whose line ``oom_kill N`` counts them
    (Linux, Documentation/admin-guide/cgroup-v2.rst). In a container the group's own path may not be mounted. Its mount
    is then the group, so the root is tried as well.
    """
    try:
        memberships = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return None
    for _, controllers, path in memberships:
        if controllers == "":
            candidates = [root / path.lstrip("/") / "memory.events", root / "memory.events"]
        elif "memory" in controllers.split(","):
            mount = root / "memory"
            candidates = [mount / path.lstrip("/") / "memory.oom_control", mount / "memory.oom_control"]
        else:
            continue
        for file in candidates:
            try:
                words = dict(line.split() for line in file.read_text().splitlines())
            except OSError:
                continue
            if "oom_kill" in words:
                return int(words["oom_kill"])
    return None
