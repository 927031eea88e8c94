"""Each optimizer step against AdamW's formula: torch's own is right, and whatever else moves a weight shows."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import pytest
import torch

from harness.worker.stages.optimizer_watch import OptimizerWatch

RATE = 2e-2
Step = Callable[[torch.optim.Optimizer, torch.Tensor, int], None]


def watched(
    step: Step,
    *,
    dtype: torch.dtype = torch.float32,
    rate: float = RATE,
    steps: int = 5,
    zero: bool = False,
    rows: int = 3,
    **options: Any,
) -> OptimizerWatch:
    """Train one tensor for some steps as ``step`` takes them, with random gradients, one of them zero."""
    generator = torch.Generator().manual_seed(1)
    weight = torch.nn.Parameter(torch.randn(rows, 5, generator=generator).to(dtype) * (0 if zero else 1))
    optimizer = torch.optim.AdamW([weight], **{"lr": rate, "weight_decay": 0.0, **options})
    watch = OptimizerWatch(tensors={"lora_A": weight}, learning_rate=RATE)
    for number in range(steps):
        weight.grad = torch.randn(rows, 5, generator=generator).to(dtype)
        weight.grad[0, 0] = 0
        watch.before_step()
        with torch.no_grad():
            step(optimizer, weight, number)
        watch.after_step()
    assert watch.steps == steps
    return watch


def worst_after(step: Step, **options: Any) -> float:
    """The largest distance from the formula."""
    return watched(step, **options).worst


def plain(optimizer: torch.optim.Optimizer, _weight: torch.Tensor, _number: int) -> None:
    optimizer.step()


def skipped(optimizer: torch.optim.Optimizer, _weight: torch.Tensor, number: int) -> None:
    if number != 1:
        optimizer.step()


def twice(optimizer: torch.optim.Optimizer, _weight: torch.Tensor, number: int) -> None:
    optimizer.step()
    if number == 2:
        optimizer.step()


def one_weight_moved(optimizer: torch.optim.Optimizer, weight: torch.Tensor, _number: int) -> None:
    optimizer.step()
    weight[2, 4] += 1e-3


def negated(optimizer: torch.optim.Optimizer, weight: torch.Tensor, _number: int) -> None:
    assert weight.grad is not None
    weight.grad[1, 1] *= -1
    optimizer.step()


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_a_weight_that_began_at_zero_and_moved_a_tenth_further_would_not_pass(dtype: torch.dtype) -> None:
    """As lora_B does, in each dtype that it is trained in."""
    watch = watched(plain, dtype=dtype, zero=True)

    assert watch.worst <= 1 < watch.altered


def test_adamw_follows_its_formula() -> None:
    assert worst_after(plain) < 0.1


def test_so_it_does_in_bfloat16_to_the_last_digit() -> None:
    assert worst_after(plain, dtype=torch.bfloat16) <= 1


def test_nearly_every_weight_of_fewer_digits_is_what_it_is_rounded_to() -> None:
    """By torch's own optimizer, of 10000 weights."""
    watch = watched(plain, dtype=torch.bfloat16, rows=2000, steps=8)

    assert watch.unlike < 1e-3
    assert watch.worst <= 1


@pytest.mark.parametrize("options", [{"betas": (0.9, 0.95)}, {"weight_decay": 0.1}, {"betas": (0.8, 0.999)}])
def test_what_moves_weights_by_less_than_their_last_digit_is_seen(options: dict[str, Any]) -> None:
    watch = watched(plain, dtype=torch.bfloat16, rows=2000, steps=8, **options)

    assert watch.worst > 1
    assert "of the weights of fewer digits are not what they are rounded to" in watch.where


@pytest.mark.parametrize("step", [skipped, twice, one_weight_moved, negated])
def test_anything_else_that_moves_a_weight_is_seen(step: Step) -> None:
    assert worst_after(step) > 1


def test_another_learning_rate_is_seen() -> None:
    assert worst_after(plain, rate=1.01 * RATE) > 1


def test_what_is_no_number_is_seen() -> None:
    def spoiled(optimizer: torch.optim.Optimizer, weight: torch.Tensor, _number: int) -> None:
        optimizer.step()
        weight[0, 1] = float("nan")

    assert not worst_after(spoiled, steps=1) <= 1


@pytest.mark.parametrize(("moves", "right"), [(False, True), (True, False)])
def test_a_weight_without_a_gradient_stays_and_takes_no_step(moves: bool, right: bool) -> None:
    """An expert among Linears that no token reached in a step has none at all."""
    weight = torch.nn.Parameter(torch.ones(2))
    optimizer = torch.optim.AdamW([weight], lr=RATE, weight_decay=0.0)
    watch = OptimizerWatch(tensors={"lora_A": weight}, learning_rate=RATE)
    for gradient in (torch.tensor([1.0, -2.0]), None, torch.tensor([0.5, 3.0])):
        weight.grad = gradient
        watch.before_step()
        optimizer.step()
        if gradient is None and moves:
            with torch.no_grad():
                weight += 1e-3
        watch.after_step()

    assert (watch.worst < 0.1) is right
    assert (watch.worst <= 1) is right
