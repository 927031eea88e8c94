"""Steps of a cell: stages that run one after the other in one process, and whether they can run yet."""

from __future__ import annotations

import re
from collections.abc import Callable
from contextlib import ExitStack
from dataclasses import dataclass
from pathlib import Path

from harness.contract.stages import TABLE, StageName
from harness.faults import LibraryFault, fault
from harness.faults.fault import FaultNotPlantedError, being_planted
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.introspection.description import described
from harness.worker.observation import Observation
from harness.worker.request import Request


@dataclass(frozen=True, kw_only=True)
class Step:
    """Stages that share a process.

    Attributes:
        stages: their names, in order.
        run: runs them.
    """

    stages: tuple[StageName, ...]
    run: Callable[[Observation, Request, Checkpoint], None]

    def can_run(self, observation: Observation) -> bool:
        """Whether every stage that its first one needs has left something behind; a failed check takes nothing away."""
        return all(observation.completed(need) for need in TABLE[self.stages[0]].needs if not TABLE[need].on_host)


def run_step(step: Step, observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    """Run a step in this process, and record what it took of the GPU.

    Raises:
        StageStoppedError: a stage of it ended without a usable result.
    """
    try:
        with ExitStack() as patches:
            if request.fault is not None and step.stages[0] != "import":
                _plant(request.fault, step, observation, patches)
            step.run(observation, request, described(checkpoint, request.work))
    finally:
        if request.device == "cuda":
            _record_gpu(observation)


def _plant(name: str, step: Step, observation: Observation, patches: ExitStack) -> None:
    """Plant a fault of code in this process, where the step has a stage of it. What cannot be planted is an error."""
    planted = fault(name)
    if isinstance(planted, LibraryFault) and (not planted.during or planted.during & set(step.stages)):
        try:
            with being_planted(name):
                planted.plant(patches)
        except FaultNotPlantedError:
            with observation.stage(step.stages[0]):
                raise


def _record_gpu(observation: Observation) -> None:
    """Record the device, where this process has used it.

    The most that any process of the cell has had allocated on it is recorded too.
    """
    import torch

    if not torch.cuda.is_initialized():
        return
    peak = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    observation.data["peak_vram_mb"] = max(observation.data.get("peak_vram_mb", 0.0), peak)
    observation.data["device"] = torch.cuda.get_device_name()
    observation.data["versions"] |= _gpu_versions(str(torch.version.cuda))
    observation.save()


def _gpu_versions(cuda: str, driver: Path = Path("/proc/driver/nvidia/version")) -> dict[str, str]:
    """Return the versions of the CUDA that torch was built for and, where the kernel tells, of the driver."""
    found = {"cuda": cuda}
    if driver.exists():
        number = re.search(r"Module\s+(?:for \S+\s+)?([\d.]+)", driver.read_text())
        found |= {"nvidia-driver": number[1]} if number else {}
    return found
