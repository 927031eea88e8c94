"""Steps of a cell: stages that run one after the other in one process, and whether they can run yet."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.request import Request

UNUSABLE = frozenset({"error", "unsupported", "crash"})
"""Results of a stage that leaves nothing behind for others. One that has merely failed a check does leave something."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """Stages that share a process.

    Attributes:
        stages: their names, in order.
        needs: stages that must have left something usable behind.
        run: runs them.
    """

    stages: tuple[str, ...]
    needs: tuple[str, ...]
    run: Callable[[Observation, Request, Checkpoint], None]

    def can_run(self, observation: Observation) -> bool:
        """Whether everything that it needs is there."""
        results = {name: stage["result"] for name, stage in observation.data["stages"].items()}
        return all(results.get(name, "error") not in UNUSABLE for name in self.needs)


def run_step(step: Step, observation: Observation, request: Request, checkpoint: Checkpoint) -> None:
    """Run a step in this process, and record what it took of the GPU.

    Raises:
        StageStoppedError: a stage of it ended without a usable result.
    """
    try:
        step.run(observation, request, checkpoint)
    finally:
        if request.device == "cuda":
            _record_gpu(observation)


def _record_gpu(observation: Observation) -> None:
    """Record the device and the most that any process of the cell has had allocated on it, where this one has used it."""
    import torch

    if not torch.cuda.is_initialized():
        return
    peak = round(torch.cuda.max_memory_allocated() / 2**20, 1)
    observation.data["peak_vram_mb"] = max(observation.data.get("peak_vram_mb", 0.0), peak)
    observation.data["device"] = torch.cuda.get_device_name()
    observation.save()
