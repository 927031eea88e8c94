"""The machine in general words: what a reader needs to judge the numbers, and nothing that names it."""

from __future__ import annotations

import importlib.metadata
import os
import platform
from pathlib import Path
from typing import Any

import psutil

KINDS = (("nvme", "NVMe solid-state disk"), ("vd", "virtual disk"), ("xvd", "virtual disk"), ("md", "disk array"))


def disk_words(name: str, *, rotational: bool | None) -> str:
    """Return a kind of disk in words.

    Args:
        name: the kernel's name of the device, without its partition.
        rotational: what the kernel says, which is believed of disks that are not virtual.
    """
    for prefix, words in KINDS:
        if name.startswith(prefix):
            return words
    if rotational is None:
        return "disk of unknown kind"
    return "hard disk" if rotational else "solid-state disk"


def _disk(folder: Path) -> str:
    device = folder.stat().st_dev
    block = Path("/sys/dev/block") / f"{os.major(device)}:{os.minor(device)}"
    if not block.exists():
        return disk_words("", rotational=None)
    place = block.resolve()
    whole = place.parent if (place / "partition").exists() else place
    flag = whole / "queue" / "rotational"
    return disk_words(whole.name, rotational=flag.read_text().strip() == "1" if flag.exists() else None)


def _file_system(folder: Path) -> str:
    mounts = {Path(part.mountpoint): part.fstype for part in psutil.disk_partitions(all=True)}
    return next((mounts[path] for path in (folder.resolve(), *folder.resolve().parents) if path in mounts), "unknown")


def _processor() -> str:
    lines = Path("/proc/cpuinfo").read_text().splitlines() if Path("/proc/cpuinfo").exists() else []
    found = [line.partition(":")[2].strip() for line in lines if line.startswith("model name")]
    return found[0] if found else platform.machine()


def describe(folder: Path) -> dict[str, Any]:
    """Return what the report says of this machine and of the disk that holds ``folder``."""
    return {
        "cores": len(os.sched_getaffinity(0)),
        "processor": _processor(),
        "memory_gib": round(psutil.virtual_memory().total / 2**30),
        "disk": _disk(folder),
        "file_system": _file_system(folder),
        "python": platform.python_version(),
        "torch": importlib.metadata.version("torch"),
    }
