"""A resumed adapter against the uninterrupted one, bit for bit."""

from __future__ import annotations

import pytest
import torch

from harness.worker.recipes.recipe import recipe
from harness.worker.stages.resumed import judge_resumed
from harness.worker.stages.trainer_options import steps_before_saving

WANTED = {"lora_A": torch.tensor([1.0, -2.0]), "lora_B": torch.tensor([0.5])}


def test_the_same_numbers_after_the_same_steps_pass() -> None:
    assert judge_resumed(WANTED, {name: tensor.clone() for name, tensor in WANTED.items()}, [6, 7, 8], [6, 7, 8]).passed


@pytest.mark.parametrize("taken", [[], [6, 7], list(range(1, 9))])
def test_other_steps_do_not(taken: list[int]) -> None:
    assert not judge_resumed(WANTED, WANTED, taken, [6, 7, 8]).passed


def test_one_last_digit_is_noticed_and_counted() -> None:
    found = {**WANTED, "lora_A": torch.tensor([1.0, torch.nextafter(torch.tensor(-2.0), torch.tensor(0.0)).item()])}
    judgement = judge_resumed(WANTED, found, [8], [8])

    assert (judgement.value, judgement.passed) == (1, False)
    assert "lora_A" in str(judgement.detail)


def test_it_is_saved_within_an_epoch() -> None:
    """Otherwise no batch would have to be skipped; an epoch of ``lora-resumed`` is two steps."""
    assert steps_before_saving(recipe("lora-resumed")) % 2 == 1
