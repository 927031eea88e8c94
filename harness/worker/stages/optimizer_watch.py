"""Each optimizer step against AdamW's own formula, in float64, from the gradients and weights that training had.

m and v are running means of g and g^2, corrected for their start at zero. A weight moves by
``-lr m / (sqrt(v) + eps)`` (arXiv 1711.05101 without decay, as ``torch.optim.AdamW`` has it). So a step that was left
out, taken twice or taken with another learning rate shows, and so does a weight that moved by itself. A tensor that has
no gradient at all in a step, which is no gradient of zero, stays where it is.

A weight of fewer digits than float32, as TRL 1.x trains on quantised bases, is rounded by more than most changes of the
formula move it by. There it is asked besides how many weights are exactly what they are rounded to.
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

UNLIKE = 2.5e-3
"""Of all weights that have fewer digits than float32: how many may be others than the formula's, each operation rounded
as torch rounds it. Measured at most 2.7e-4. A decay of 0.1 makes it 2.5e-2."""

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
        unlike: of the weights of fewer digits than float32, the largest share in a step that is not what it is rounded
            to.
        altered: that distance, had the weights moved a tenth further in the first step.
    """

    tensors: Mapping[str, Any]
    learning_rate: float
    steps: int = 0
    worst: float = 0.0
    where: str = "no step"
    unlike: float = 0.0
    altered: float = 0.0
    _moments: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _counts: dict[str, int] = field(default_factory=dict)
    _expected: dict[str, Any] = field(default_factory=dict)
    _before: dict[str, Any] = field(default_factory=dict)
    _rounded: dict[str, Any] = field(default_factory=dict)
    _rounded_moments: dict[str, tuple[Any, Any]] = field(default_factory=dict)
    _after: dict[str, Any] = field(default_factory=dict)

    def before_step(self) -> None:
        """Note what each weight should become; called when gradients are clipped and nothing has moved."""
        import torch

        first, second = BETAS
        self._rounded.clear()
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
            if torch.finfo(tensor.dtype).eps > torch.finfo(torch.float32).eps:
                self._rounded[name] = self._rounded_step(name, tensor, count)
            root = (v / (1 - second**count)).sqrt()
            self._expected[name] = weight - self.learning_rate * (m / (1 - first**count)) / (root + EPS)

    def after_step(self) -> None:
        """Hold each weight against what it should have become."""
        self.steps += 1
        if self._rounded:
            self._count_unlike()
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

    def _count_unlike(self) -> None:
        """Count the weights of fewer digits that are not exactly what they are rounded to."""
        unlike = sum(int((self.tensors[name].detach() != weight).sum()) for name, weight in self._rounded.items())
        share = unlike / sum(weight.numel() for weight in self._rounded.values())
        self.unlike = max(self.unlike, share)
        if share / UNLIKE > self.worst:
            words = f"{share:.2%} of the weights of fewer digits are not what they are rounded to"
            self.worst, self.where = share / UNLIKE, f"{words}, step {self.steps}"

    def _rounded_step(self, name: str, tensor: Any, count: int) -> Any:
        """Return what a weight becomes where each operation is computed in float32 and rounded to the weight's dtype.

        So torch computes in fewer digits, and so it keeps the moments (``torch.optim.adamw``, 2.13.0).
        """
        import torch

        first, second = BETAS

        def rounded(value: Any) -> Any:
            return value.to(tensor.dtype).float()

        gradient = tensor.grad.detach().float()
        zero = torch.zeros_like(gradient)
        m, v = self._rounded_moments.get(name, (zero, zero))
        m = rounded(m + (1 - first) * (gradient - m))
        v = rounded(rounded(second * v) + (1 - second) * gradient**2)
        self._rounded_moments[name] = m, v
        root = rounded(rounded(v.sqrt()) / (1 - second**count) ** 0.5)
        step = self.learning_rate / (1 - first**count) * m / rounded(root + EPS)
        return (tensor.detach().float() - step).to(tensor.dtype)

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
