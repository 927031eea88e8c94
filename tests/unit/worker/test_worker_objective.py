"""The loss of a batch and of its routers, by sums that are written out, and what is right of a trainer's."""

from __future__ import annotations

import math

import pytest
import torch

from harness.worker.stages.objective import judge_objective, load_balancing_loss, next_token_loss


def test_the_loss_is_the_mean_surprise_at_the_next_token() -> None:
    """One sequence of three tokens from a vocabulary of two; the first is predicted by nothing."""
    p, q = 0.9, 0.25
    logits = torch.tensor([[[math.log(1 - p), math.log(p)], [math.log(q), math.log(1 - q)], [9.0, -9.0]]])
    tokens = torch.tensor([[0, 1, 0]])

    assert next_token_loss(logits, tokens) == pytest.approx(-(math.log(p) + math.log(q)) / 2, rel=1e-6)
    assert next_token_loss(logits, tokens, ahead=2) == pytest.approx(-math.log(1 - p), rel=1e-6)


def test_routers_that_spread_evenly_have_the_least_loss() -> None:
    even = {0: torch.tensor([[1.0, 0.0], [0.0, 1.0]]), 1: torch.tensor([[1.0, 0.0], [0.0, 1.0]])}

    assert load_balancing_loss(even, top_k=1) == pytest.approx(1.0)


def test_routers_that_choose_one_expert_have_its_mean_probability() -> None:
    """Both tokens choose expert 0: E f_0 p_0 = 2 * 1 * (3/4 + 9/10) / 2."""
    logits = {0: torch.tensor([[math.log(3.0), 0.0], [math.log(9.0), 0.0]])}

    assert load_balancing_loss(logits, top_k=1) == pytest.approx(2 * (0.75 + 0.9) / 2)


def test_all_layers_are_one_average() -> None:
    """Layer 0 chooses expert 0 with 3/4, layer 1 expert 1 with 9/10: f = 1/2 each, p = (3/4 + 1/10)/2 and the rest."""
    logits = {0: torch.tensor([[math.log(3.0), 0.0]]), 1: torch.tensor([[0.0, math.log(9.0)]])}

    assert load_balancing_loss(logits, top_k=1) == pytest.approx(2 * (0.5 * 0.425 + 0.5 * 0.575))


@pytest.mark.parametrize("told", [2.0, 2.0 * 31 / 32, 2.0 + 1e-4])
def test_a_loss_by_predictions_or_by_labels_is_right(told: float) -> None:
    assert judge_objective(told, 2.0, 0.0, 32).passed


@pytest.mark.parametrize("told", [2.001, 2.0 * 30 / 32, 1.0, float("nan"), float("inf"), 2.0 + 0.0036])
def test_another_loss_is_not(told: float) -> None:
    assert not judge_objective(told, 2.0, 0.0, 32).passed


def test_what_a_trainer_adds_must_be_in_the_loss() -> None:
    assert judge_objective(2.0036, 2.0, 0.0036, 32).passed
    missing = judge_objective(2.0, 2.0, 0.0036, 32)
    assert not missing.passed
    assert missing.detail == "the first loss was 2, where 2.0036 or 1.9411 is right"
