"""The loss of a batch and of its routers, by sums that are written out, and what is right of a trainer's."""

from __future__ import annotations

import math

import pytest
import torch

from harness.worker.observation import Judgement
from harness.worker.stages.objective import Objective, cross_entropies, judge_objective, load_balancing_loss


def told(loss: float, *, balance: float = 0.0) -> Objective:
    """Return a loss of sequences of 32 tokens, whose cross entropy is 2 nats."""
    return Objective(told=loss, cross_entropy=2.0, after_next=3.0, balance=balance, predicted=31 / 32)


def test_the_loss_is_the_mean_surprise_at_the_next_token() -> None:
    """One sequence of three tokens from a vocabulary of two; the first is predicted by nothing."""
    p, q = 0.9, 0.25
    logits = torch.tensor([[[math.log(1 - p), math.log(p)], [math.log(q), math.log(1 - q)], [9.0, -9.0]]])
    tokens = torch.tensor([[0, 1, 0]])

    everything = torch.ones_like(tokens, dtype=torch.bool)
    surprise = [-math.log(p), -math.log(q)]
    assert cross_entropies(logits, tokens, everything).tolist() == pytest.approx(surprise, rel=1e-6)
    assert cross_entropies(logits, tokens, everything, ahead=2).tolist() == pytest.approx([-math.log(1 - p)], rel=1e-6)
    assert cross_entropies(logits, tokens, torch.tensor([[True, False, True]])).tolist() == pytest.approx(
        surprise[1:], rel=1e-6
    )


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


def judged(loss: float, *, balance: float = 0.0) -> Judgement:
    """What is said of one step with that loss."""
    return judge_objective({1: told(loss, balance=balance)})


@pytest.mark.parametrize("loss", [2.0, 2.0 * 31 / 32, 2.0 + 1e-6])
def test_a_loss_by_predictions_or_by_labels_is_right(loss: float) -> None:
    assert judged(loss).passed


@pytest.mark.parametrize("loss", [2.0 + 1e-4, 2.0 * 30 / 32, 1.0, float("nan"), float("inf"), 2.0 + 0.0036])
def test_another_loss_is_not(loss: float) -> None:
    assert not judged(loss).passed


def test_what_a_trainer_adds_must_be_in_the_loss() -> None:
    assert judged(2.0036, balance=0.0036).passed
    missing = judged(2.0, balance=0.0036)
    assert not missing.passed
    assert missing.detail == "the loss of step 1 was 2, where 2.0036 or 1.9411 is right"


@pytest.mark.parametrize("loss", [2.1, float("nan")])
def test_a_later_loss_is_held_against_its_own_step(loss: float) -> None:
    found = judge_objective({1: told(2.0), 8: told(loss), 9: told(2.0)})

    assert not found.passed
    assert found.detail is not None
    assert found.detail.startswith("the loss of step 8 was ")


def test_all_steps_are_means_over_the_same() -> None:
    assert judge_objective({1: told(2.0 * 31 / 32), 8: told(2.0 * 31 / 32)}).passed
    mixed = judge_objective({1: told(2.0), 8: told(2.0 * 31 / 32)})
    assert not mixed.passed
    assert "that of another over predictions" in str(mixed.detail)


def test_a_training_without_a_loss_is_not_right() -> None:
    assert not judge_objective({}).passed


def test_the_token_after_next_is_not_what_is_asked_for() -> None:
    assert not judge_objective({1: told(2.0).after_the_next()}).passed
