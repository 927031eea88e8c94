"""The gradient of an optimizer step, held against that of its documents, each alone and all at once.

A trainer adds up batches, packs rows, leaves out padding, computes layers again in the backward pass, forgets to set
gradients back, or multiplies what it should not. None of it may be seen in what weights move by. With the optimizer's
own formula, which ``optimizer_watch`` holds every step against, it follows that the adapter is that of plain training.

Ours is the gradient of copies of the trained tensors: whatever hooks a trained tensor has are not theirs.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from functools import partial
from typing import Any

from harness.worker.observation import Judgement
from harness.worker.stages.documents import Batches
from harness.worker.stages.evaluate import set_mode
from harness.worker.stages.experts_watch import ExpertWatch
from harness.worker.stages.forward_paths import share
from harness.worker.stages.objective import Balancing, Objective, said_of

EPS = 1e-6
"""What ``torch.nn.utils.clip_grad_norm_`` adds to a norm."""
DIGITS = 2
"""How many of its last digits a gradient in fewer of them than float32 may be off by: its norm, that of all, what it is
multiplied by and the product are rounded. Half a digit each, and as much again for what was rounded on the way."""
FURTHER = 3
"""How much larger a gradient of a control is, in bands, as ``harness.contract.checks`` says."""


@dataclass(frozen=True, kw_only=True)
class Off:
    """How far one tensor's gradient was from ours.

    Attributes:
        distance: relative to the gradient's norm.
        room: what it may be.
        where: which tensor and step that was.
        factor: how much larger the whole gradient was than it should be in that step.
    """

    distance: float
    room: float
    where: str
    factor: float

    @classmethod
    def between(cls, told: Any, expected: Any, *, room: float, where: str, factor: float) -> Off:
        """Return how far what training had is from what was expected."""
        distance = share(float((told - expected).norm()), float(expected.norm()))
        return cls(distance=distance, room=room, where=where, factor=factor)

    @property
    def share(self) -> float:
        """The distance as a share of what it may be."""
        return self.distance / self.room


@dataclass(kw_only=True)
class GradientWatch:
    """How far gradients were from ours.

    Attributes:
        tensors: the trained tensors by name.
        watch: of the model's experts.
        device: where the model is.
        max_norm: what gradients are clipped to, all of them together.
        band: the largest distance of a gradient in float32.
        dropout: whether the model has some: then it is asked in training mode, with the random numbers that training
            had.
        norms: how large the gradient of each step that was looked at should be, before it is clipped.
        worst: the gradient that was furthest, by its share; None before a step was looked at.
        but_for_factors: the largest share, were each step's whole gradient as large as it should be.
        altered: the furthest, had one tensor's gradient been larger by three bands.
    """

    tensors: Mapping[str, Any]
    watch: ExpertWatch
    device: str
    max_norm: float
    band: float
    dropout: bool = False
    norms: dict[int, float] = field(default_factory=dict)
    worst: Off | None = None
    but_for_factors: float = 0.0
    altered: Off | None = None

    def look(
        self,
        model: Any,
        batches: Batches,
        *,
        step: int,
        drawn: Sequence[RandomState],
        balancing: Balancing | None,
    ) -> Objective:
        """Compare, when gradients are clipped and nothing has moved; return what the step's loss should be.

        Args:
            model: as it is trained; it is left as it was.
            batches: has the documents of the step, and its loss.
            step: its number.
            drawn: the random numbers that each batch was said with in training.
            balancing: the loss of routers that is added to a batch's own, its mean over batches to a step's.
        """
        import torch

        copies = {name: tensor.detach().clone().requires_grad_() for name, tensor in self.tensors.items()}
        with self._asked(model), torch.enable_grad():
            speaking = _with_copies(model, self.tensors, copies)
            said = []
            for part, state in zip(batches.parts, drawn, strict=True):
                state.set()
                said.append(said_of(speaking, part, watch=self.watch, balancing=balancing, device=self.device))
            objective = Objective.of(said, told=batches.told, labels=batches.labels_of_step)
            divisor = batches.labels_of_step if objective.by_labels else batches.predictions_of_step
            loss = sum(part.losses / divisor + part.balance / len(said) for part in said)
            found = [None] * len(copies)
            if loss.requires_grad:  # else the model makes nothing of them, which is what it should not
                found = torch.autograd.grad(loss, list(copies.values()), allow_unused=True)
        pairs = zip(copies.items(), found, strict=True)
        self._compare({name: _or_zero(gradient, tensor) for (name, tensor), gradient in pairs}, step)
        return objective

    def compare_norms(self, told: Mapping[int, float]) -> None:
        """Compare how large gradients were before they were clipped, which hides a factor of all of them.

        Args:
            told: by step, what the trainer says.
        """
        room = max(map(self._room, self.tensors))
        for step, norm in self.norms.items():
            said = told.get(step, math.nan)
            factor = said / norm if norm else 1.0
            where = f"the norm before clipping, step {step}"
            off = Off(distance=share(abs(said - norm), norm), room=room, where=where, factor=factor)
            self.worst = _further(self.worst, off)

    def _compare(self, wanted: Mapping[str, Any], step: int) -> None:
        size = self.norms[step] = _size(wanted)
        clip = min(1.0, self.max_norm / (size + EPS))
        told = {name: _or_zero(tensor.grad, tensor) for name, tensor in self.tensors.items()}
        whole = clip * size
        factor = _size(told) / whole if whole else 1.0
        for name, gradient in wanted.items():
            expected, room = clip * gradient, self._room(name)
            between = partial(Off.between, room=room, where=f"{name}, step {step}", factor=factor)
            self.worst = _further(self.worst, between(told[name], expected))
            scaled = between(told[name], factor * expected).share if factor else math.inf  # nothing is no factor
            self.but_for_factors = max(self.but_for_factors, scaled)
            if expected.any():
                self.altered = _further(self.altered, between((1 + FURTHER * room) * told[name], expected))

    def _room(self, name: str) -> float:
        """Return how far a tensor's gradient may be from ours."""
        import torch

        digit = float(torch.finfo(self.tensors[name].dtype).eps)
        return self.band + (DIGITS * digit if digit > torch.finfo(torch.float32).eps else 0.0)

    @contextmanager
    def _asked(self, model: Any) -> Iterator[None]:
        """Set modes within the block, and leave them and random numbers as they were."""
        import torch

        modes = {module: module.training for module in model.modules()}
        if self.dropout:
            model.train()
        else:
            set_mode(model)  # no layer is computed again in evaluation mode
        try:
            with torch.random.fork_rng(), torch.autocast(torch.device(self.device).type, enabled=False):
                yield
        finally:
            for module, training in modes.items():
                module.training = training

    def describe(self) -> str:
        """Return what is off, by name."""
        if self.worst is None:
            return "no step was looked at"
        if self.but_for_factors <= 1 < self.worst.share:
            factor, where = self.worst.factor, self.worst.where
            return f"right but for a factor, the same for all tensors of a step: {factor:.3g} in {where}"
        return f"the one that is furthest from that of the sequences alone: {self.worst.where}"


@dataclass(frozen=True)
class RandomState:
    """The state of random numbers, on the CPU and on each GPU that is in use."""

    cpu: Any
    gpus: list[Any]

    @classmethod
    def now(cls) -> RandomState:
        """Return the present one."""
        import torch

        return cls(torch.get_rng_state(), torch.cuda.get_rng_state_all() if torch.cuda.is_initialized() else [])

    def set(self) -> None:
        """Go back to it."""
        import torch

        torch.set_rng_state(self.cpu)
        if self.gpus:
            torch.cuda.set_rng_state_all(self.gpus)


def _with_copies(model: Any, tensors: Mapping[str, Any], copies: Mapping[str, Any]) -> Callable[..., Any]:
    """Return the model with copies in the place of trained tensors, to be called as it is."""
    from torch.func import functional_call

    names = {id(tensor): name for name, tensor in model.named_parameters()}
    placed = {names[id(tensor)]: copies[name] for name, tensor in tensors.items()}
    return lambda **given: functional_call(model, placed, (), given)


def _or_zero(gradient: Any, tensor: Any) -> Any:
    """Return a gradient in float32; zeros where a tensor has none."""
    import torch

    return torch.zeros_like(tensor, dtype=torch.float32) if gradient is None else gradient.detach().float()


def _further(one: Off | None, other: Off) -> Off:
    return other if one is None or not other.share <= one.share else one


def _size(tensors: Mapping[str, Any]) -> float:
    return math.sqrt(sum(float(tensor.double().norm()) ** 2 for tensor in tensors.values()))


def judge_gradient(off: Off | None, what: str, *, all_seen: bool, runs: float, wanted_runs: int) -> Judgement:
    """Judge the worst gradient, and that layers were computed as often as was asked for.

    Args:
        off: the worst gradient; None where no step was looked at.
        what: what is wrong with it, by name.
        all_seen: whether every step was looked at that should have been.
        runs: how often a token went through the experts of a layer.
        wanted_runs: how often it should have.
    """
    band = "a step that was looked at" if off is None else f"<= {off.room:.3g}"
    seen = "" if all_seen else "; not every step was there to be looked at"
    return Judgement(
        value=None if off is None else off.distance,
        band=f"{band}, each layer computed {'twice' if wanted_runs > 1 else 'once'}",
        passed=off is not None and off.share <= 1 and all_seen and runs == wanted_runs,
        detail=f"{what}{seen}; each token went through its experts {runs:g} times",
    )
