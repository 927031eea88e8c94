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

from collections.abc import Iterable, Iterator
from dataclasses import dataclass
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


def available_mb(*, proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> float:
    """Return how much memory this machine has to give now, in MiB; in a control group no more than that may still take.

    What a group has taken is its usage without the page cache that the kernel would give up first (``inactive_file``).
    """
    available = float(psutil.virtual_memory().available)
    for folder, names in _groups(proc, root):
        try:
            limit, used = ((folder / name).read_text().strip() for name in (names.limit, names.usage))
            cached = _words(folder / "memory.stat").get(names.cached, "0")
        except (OSError, ValueError):
            continue
        if limit.isdigit():  # version 2 says "max" where there is none, version 1 a number that no machine has
            available = min(available, max(0.0, float(limit) - float(used) + float(cached)))
    return available / MIB


def kernel_oom_kills(*, proc: Path = Path("/proc/self/cgroup"), root: Path = Path("/sys/fs/cgroup")) -> int | None:
    """Return how many processes the kernel has killed for memory in this process's control group, or None if unknown.

    Read from ``memory.events`` (cgroup v2) or ``memory.oom_control`` (v1), whose line ``oom_kill N`` counts them
    (Linux, Documentation/admin-guide/cgroup-v2.rst).
    """
    for folder, names in _groups(proc, root):
        try:
            words = _words(folder / names.events)
        except (OSError, ValueError):
            continue
        if "oom_kill" in words:
            return int(words["oom_kill"])
    return None


@dataclass(frozen=True, kw_only=True)
class _Names:
    """What files of a control group, and a line of its ``memory.stat``, are called."""

    limit: str
    usage: str
    events: str
    cached: str


_V2 = _Names(limit="memory.max", usage="memory.current", events="memory.events", cached="inactive_file")
_V1 = _Names(
    limit="memory.limit_in_bytes",
    usage="memory.usage_in_bytes",
    events="memory.oom_control",
    cached="total_inactive_file",
)


def _groups(proc: Path, root: Path) -> Iterator[tuple[Path, _Names]]:
    """Yield the folders that may be this process's control group for memory, and what their files are called.

    In a container the group's own path may not be mounted. Its mount is then the group, so the root is named as well.
    """
    try:
        memberships = [line.split(":", 2) for line in proc.read_text().splitlines()]
    except OSError:
        return
    for _, controllers, path in memberships:
        mounts = {"": (root, _V2)} if controllers == "" else {}
        if "memory" in controllers.split(","):
            mounts["memory"] = (root / "memory", _V1)
        for mount, names in mounts.values():
            yield mount / path.lstrip("/"), names
            yield mount, names


def _words(path: Path) -> dict[str, str]:
    return dict(line.split() for line in path.read_text().splitlines())
