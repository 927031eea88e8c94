"""The gradient of each optimizer step, held against that of its documents, each alone and all at once.

A trainer adds up batches, packs rows, leaves out padding and computes layers again in the backward pass. None of it may
be seen in what weights move by. With the optimizer's own formula, which ``optimizer_watch`` holds every step against,
it follows that the adapter is that of plain training.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from harness.worker.observation import Judgement
from harness.worker.stages.documents import Document
from harness.worker.stages.evaluate import set_mode
from harness.worker.stages.experts_watch import ExpertWatch
from harness.worker.stages.forward_paths import LARGER, share
from harness.worker.stages.objective import Balancing, said_of

EPS = 1e-6
"""What ``torch.nn.utils.clip_grad_norm_`` adds to a norm."""


@dataclass(kw_only=True)
class GradientWatch:
    """How far gradients were from ours.

    Attributes:
        tensors: the trained tensors by name.
        watch: of the model's experts.
        device: where the model is.
        max_norm: what gradients are clipped to, all of them together.
        worst: the largest distance, relative to the gradient's norm.
        where: which tensor and step that was.
        factor: how much larger the whole gradient was than it should be in that step.
        but_for_factors: the largest distance, were each step's whole gradient as large as it should be.
        altered: that distance, had one tensor's gradient been a thousandth larger.
    """

    tensors: Mapping[str, Any]
    watch: ExpertWatch
    device: str
    max_norm: float
    worst: float = 0.0
    where: str = "no step"
    factor: float = 1.0
    but_for_factors: float = 0.0
    altered: float = 0.0
    _steps: int = field(default=0)

    def look(
        self, model: Any, parts: Sequence[Sequence[Document]], *, balancing: Balancing | None, divisor: float
    ) -> None:
        """Compare, when gradients are clipped and nothing has moved.

        Args:
            model: as it is trained; it is in training mode afterwards.
            parts: the documents of the step's batches.
            balancing: the loss of routers that is added to a batch's own, its mean over batches to a step's.
            divisor: what the sum of cross entropies is divided by.
        """
        import torch

        self._steps += 1
        names = list(self.tensors)
        wanted = {name: torch.zeros_like(self.tensors[name]) for name in names}
        set_mode(model)  # no layer is computed again in evaluation mode
        for part in parts:
            with torch.enable_grad():
                said = said_of(model, part, watch=self.watch, balancing=balancing, device=self.device)
                loss = said.losses / divisor + said.balance / len(parts)
                found = torch.autograd.grad(loss, [self.tensors[name] for name in names], allow_unused=True)
            for name, gradient in zip(names, found, strict=True):
                if gradient is not None:
                    wanted[name] += gradient
        model.train()
        clip = min(1.0, self.max_norm / (_size(wanted) + EPS))
        expected = {name: clip * gradient for name, gradient in wanted.items()}
        told = {name: self._told(name) for name in names}
        factor = _size(told) / _size(expected) if _size(expected) else 1.0
        for name in names:
            whole = float(expected[name].norm())
            off = share(float((told[name] - expected[name]).norm()), whole)
            if not off <= self.worst:
                self.worst, self.factor, self.where = off, factor, f"{name}, step {self._steps}"
            scaled = share(float((told[name] - factor * expected[name]).norm()), factor * whole)
            self.but_for_factors = max(self.but_for_factors, scaled)
            if whole:
                self.altered = max(self.altered, share(float((LARGER * told[name] - expected[name]).norm()), whole))

    def _told(self, name: str) -> Any:
        """Return the gradient that training has of a tensor."""
        tensor = self.tensors[name]
        return (0 * tensor if tensor.grad is None else tensor.grad).detach()

    def describe(self, band: float) -> str:
        """Return what is off, by name."""
        if self.but_for_factors <= band < self.worst:
            return f"right but for a factor, the same for all tensors of a step: {self.factor:.3g} in {self.where}"
        return f"the one that is furthest from that of the sequences alone: {self.where}"


def _size(tensors: Mapping[str, Any]) -> float:
    return math.sqrt(sum(float(tensor.double().norm()) ** 2 for tensor in tensors.values()))


def judge_gradient(value: float, what: str, *, band: float, runs: float, wanted_runs: int) -> Judgement:
    """Judge the worst gradient, and that layers were computed as often as was asked for."""
    return Judgement(
        value=value,
        band=f"<= {band:g}, each layer computed {'twice' if wanted_runs > 1 else 'once'}",
        passed=value <= band and runs == wanted_runs,
        detail=f"{what}; each token went through its experts {runs:g} times",
    )
