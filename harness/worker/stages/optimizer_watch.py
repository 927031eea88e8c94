"""Each optimizer step against AdamW's own formula, in float64, from the gradients and weights that training had.

m and v are running means of g and g^2, corrected for their start at zero. A weight moves by
``-lr m / (sqrt(v) + eps)`` (arXiv 1711.05101 without decay, as ``torch.optim.AdamW`` has it). So a step that was left
out, taken twice or taken with another learning rate shows, and so does a weight that moved by itself. A tensor that has
no gradient at all in a step, which is no gradient of zero, stays where it is.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

BETAS = (0.9, 0.999)
EPS = 1e-8
"""Defaults of transformers' TrainingArguments (adam_beta1, adam_beta2, adam_epsilon)."""
SHARE = 1e-3
"""Of a learning rate: how far from the formula a weight may be, besides the rounding of its dtype."""

FURTHER = 0.1
"""How much further weights have moved in a control, as ``harness.contract.checks`` says."""


@dataclass(kw_only=True)
class OptimizerWatch:
    """What the weights should be after each step.

    Attributes:
        tensors: the trained tensors by name.
        learning_rate: constant.
        steps: how many steps were seen.
        worst: the largest distance from the formula, as a multiple of what it may be; at most 1 is right.
        where: which tensor and step that was.
        altered: that distance, had the weights moved a tenth further in the first step.
    """

    tensors: Mapping[str, Any]
    learning_rate: float
    steps: int = 0
    worst: float = 0.0
    where: str = "no step"
    altered: float = 0.0
    _moments: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _expected: dict[str, Any] = field(default_factory=dict)
    _before: dict[str, Any] = field(default_factory=dict)
    _after: dict[str, Any] = field(default_factory=dict)

    def before_step(self) -> None:
        """Note what each weight should become; called when gradients are clipped and nothing has moved."""
        first, second = BETAS
        for name, tensor in self.tensors.items():
            weight = tensor.detach().double()
            self._hold(name, weight, f"moved before step {self.steps + 1}")
            if self.steps == 0:
                self._before[name] = weight
            if tensor.grad is None:  # an expert that no token reached; torch takes no step of it, and forgets nothing
                self._expected[name] = weight
                continue
            gradient = tensor.grad.detach().double()
            count = self._counts[name] = self._counts.get(name, 0) + 1
            m, v = self._moments.get(name, (0.0, 0.0))
            m, v = first * m + (1 - first) * gradient, second * v + (1 - second) * gradient**2
            self._moments[name] = m, v
            root = (v / (1 - second**count)).sqrt()
            self._expected[name] = weight - self.learning_rate * (m / (1 - first**count)) / (root + EPS)

    def after_step(self) -> None:
        """Hold each weight against what it should have become."""
        self.steps += 1
        for name, tensor in self.tensors.items():
            weight, expected = tensor.detach().double(), self._expected[name]
            room = self._room(tensor, expected)
            off = float(((weight - expected).abs() / room).max())
            self._after[name] = weight.clone()
            if not off <= self.worst:
                self.worst, self.where = off, f"{name}, step {self.steps}"
            if self.steps == 1:
                further = weight + FURTHER * (weight - self._before.pop(name))
                self.altered = max(self.altered, float(((further - expected).abs() / room).max()))

    def finish(self) -> None:
        """Hold each weight against what it was after the last step; called when training has ended."""
        for name, tensor in self.tensors.items():
            self._hold(name, tensor.detach().double(), "moved after the last step")

    def _hold(self, name: str, weight: Any, words: str) -> None:
        """Nothing but a step moves a weight."""
        if name in self._after and not bool((weight == self._after[name]).all()):
            self.worst, self.where = float("inf"), f"{name} {words}"

    def _room(self, tensor: Any, expected: Any) -> Any:
        """Return how far a weight may be from the formula.

        It is stored in its dtype, half of whose last digit may be lost. So are the moments of it.
        """
        import torch

        digit = torch.finfo(tensor.dtype).eps
        return SHARE * self.learning_rate + digit * expected.abs() + 8 * digit * self.learning_rate
