"""What of a machine decides what a cell computes: its instruction sets, and for a GPU which one and its driver.

Kernels are chosen by them, and sums are ordered otherwise: some kernels are right with one set and wrong with another.
"""

from __future__ import annotations

import platform
from functools import cache
from pathlib import Path

from harness.contract.cell_fields import Device

CPU_FILE = Path("/proc/cpuinfo")
GPU_FOLDER = Path("/proc/driver/nvidia")
DECIDING = ("avx", "amx", "fma", "f16c", "bf16", "i8mm", "asimd", "sve", "sme")
"""How the names of those instruction sets begin that libraries choose kernels by."""

MachineKind = tuple[str, ...]
"""Sorted words; machines that have the same compute the same."""


@cache
def machine_kind(device: Device, *, cpu: Path = CPU_FILE, gpu: Path = GPU_FOLDER) -> MachineKind:
    """Return what tells machines apart that may compute a cell otherwise, as sorted words.

    Args:
        device: where the cell computes.
        cpu: the kernel's description of the processors.
        gpu: the folder of NVIDIA's kernel module.
    """
    words = {platform.machine()}
    for line in _lines(cpu):
        name, _, value = line.partition(":")
        if name.strip() in {"flags", "Features"}:
            words |= {flag for flag in value.split() if flag.startswith(DECIDING)}
            break  # the processors of one machine are alike
    if device == "cuda":
        words |= {line.strip() for line in _lines(gpu / "version") if line.startswith("NVRM")}
        for path in sorted(gpu.glob("gpus/*/information")):
            words |= {line.partition(":")[2].strip() for line in _lines(path) if line.startswith("Model:")}
    return tuple(sorted(words))


def _lines(path: Path) -> list[str]:
    """Return the lines of a file of the kernel; none where there is none."""
    try:
        return path.read_text(encoding="utf-8", errors="replace").splitlines()
    except OSError:
        return []
