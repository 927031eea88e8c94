"""How much memory a cell's processes use, and whether the kernel ran out of it.

The resident sizes of a process tree are cheap to read. They count pages that are shared within the tree once per
process: too much, never too little. So a limit is first held against their sum. Only where that is over the limit is
more read, which takes milliseconds per process: the private pages of each. The limit is held against the largest
resident size and the private pages of all others.

That does not depend on who else shares a page. A forked cell has the libraries' pages in common with its warm worker
and with its neighbours. Its proportional set size would be smaller by hundreds of megabytes than that of a process of
its own. Whether it is over its limit would hang on how it was started. Two things are still counted less in a forked
cell: pages of a library's file that only its import has touched (a fork does not inherit their mapping), and what two
processes of the cell share that the largest does not have. So a cell within tens of megabytes of its limit may be over
it in one way and not in the other.
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


def footprint_mb(processes: list[psutil.Process]) -> float:
    """Return the largest resident size and the private pages of all others, in MiB.

    Of a process that does not let its pages be read, all that is resident counts as its own.
    """
    sizes = [size for size in map(_sizes, processes) if size is not None]
    if not sizes:
        return 0.0
    # Where two are as large, the one with fewer private pages brings more that the others share.
    largest, its_own = max(sizes, key=lambda size: (size[0], -size[1]))
    return (largest - its_own + sum(private for _, private in sizes)) / MIB


def _sizes(process: psutil.Process) -> tuple[int, int] | None:
    """Return resident and private bytes of a process, None when it has ended."""
    try:
        resident = process.memory_info().rss
        try:
            return resident, process.memory_full_info().uss
        except psutil.AccessDenied:
            return resident, resident
    except psutil.NoSuchProcess:
        return None


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
