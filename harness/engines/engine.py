"""What an engine is: a job in, a merged directory on disk, and what the engine says of itself.

Nothing an engine says is believed. Its claims are kept beside what was measured from the bytes, because silent faults
live in the gap between the two.
"""

from __future__ import annotations

import importlib
import resource
import time
from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path
from typing import Protocol

MIB_PER_KIB = 1 / 1024

TORCH_DTYPE = {"float32": "float32", "bf16": "bfloat16"}
"""A cell's dtype → its name in torch, which published configurations use too."""


@dataclass(frozen=True, kw_only=True)
class Job:
    """One merge.

    Attributes:
        base: a copy of the checkpoint's directory; an engine that edits it fails.
        adapter: a copy of the saved adapter's directory; an engine that edits it fails. Adapters of other names lie in
            folders below it, as PEFT saves them, and are to be merged too.
        out: the directory to make; it must not exist.
        dtype: how the base's weights are stored and the merged ones shall be: ``float32`` or ``bf16``.
        device: ``cpu`` or ``cuda``, for engines that compute on a device.
        threads: how many threads the process may compute with.
        dtype_argument: what ``from_pretrained`` of the installed transformers calls the dtype to load in.
    """

    base: Path
    adapter: Path
    out: Path
    dtype: str = "float32"
    device: str = "cpu"
    threads: int = 1
    dtype_argument: str = "dtype"

    @property
    def adapters(self) -> tuple[Path, ...]:
        """The directories of all adapters, that of the one without a name first."""
        return (self.adapter, *sorted(path.parent for path in self.adapter.glob("*/adapter_config.json")))


@dataclass(frozen=True, kw_only=True)
class Claims:
    """What an engine says of its own merge; None where it says nothing.

    Attributes:
        attempted: on-disk tensors that it set out to change.
        applied: those that it says it changed.
        fallback: those that it says it merged by another path than its usual one.
    """

    attempted: int | None = None
    applied: int | None = None
    fallback: int | None = None


@dataclass(frozen=True, kw_only=True)
class Merged:
    """How a merge ended.

    Attributes:
        claims: what the engine says.
        exit: exit status of the engine's process; 0 where it ran in the caller's own.
        seconds: wall time, imports of a process of its own included.
        peak_memory_mb: largest resident set of the process that merged, its libraries included: MiB.
    """

    claims: Claims
    exit: int
    seconds: float
    peak_memory_mb: float


class Engine(Protocol):
    """Something that merges.

    Attributes:
        keeps_bytes: what the engine promises of all that no delta covers. True: names of tensors, shards and files
            beside the weights stay as they are, byte for byte. False: they are written anew, and are judged by what
            they mean.
    """

    @property
    def keeps_bytes(self) -> bool:
        """Whether everything that no delta covers stays byte for byte."""

    def merge(self, job: Job) -> Merged:
        """Merge the adapter into the base and leave a checkpoint directory at ``job.out``.

        Raises:
            Exception: whatever the engine raises; the cell records it in the engine's own words.
        """


def engine(name: str) -> Engine:
    """Return an engine by its name on the command line, as ``unsloth-zoo``.

    Raises:
        ModuleNotFoundError: there is no such engine; the host checks names before a cell starts.
    """
    module = importlib.import_module(f"harness.engines.{name.replace('-', '_')}")
    found: Engine = module.ENGINE
    return found


def run_in_this_process(work: Callable[[], Claims]) -> Merged:
    """Run an engine that is a library of this process, and measure it.

    The caller's process should have done little else: a resident set has no memory of who made it grow.
    """
    start = time.perf_counter()
    claims = work()
    return Merged(
        claims=claims,
        exit=0,
        seconds=round(time.perf_counter() - start, 3),
        peak_memory_mb=round(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss * MIB_PER_KIB, 1),
    )
