"""How far one forward is from another: what is no number is as far as can be."""

from __future__ import annotations

import math

import pytest
import torch

from harness.worker.stages.forward_paths import Seen, compare_paths


def seen(logits: float = 1.0, gradient: float = 1.0) -> Seen:
    return Seen(
        logits=torch.tensor([[0.0, logits], [2.0, 4.0]]),
        gradients={"zero": torch.zeros(2), "lora": torch.tensor([3.0, 4.0 * gradient])},
    )


def test_differences_are_relative_to_the_spread_and_to_the_norm() -> None:
    found = compare_paths(seen(), seen(logits=2.0, gradient=2.0))

    assert found["logits"] == pytest.approx(1 / float(seen().logits.std()))
    assert found["gradients"] == pytest.approx(4 / 5)
    assert compare_paths(seen(), seen()) == {"logits": 0.0, "gradients": 0.0}


@pytest.mark.parametrize("reference", [True, False])
@pytest.mark.parametrize("value", [math.nan, math.inf])
def test_what_is_no_number_is_infinitely_far(value: float, *, reference: bool) -> None:
    for part, broken in (("logits", seen(logits=value)), ("gradients", seen(gradient=value))):
        found = compare_paths(broken, seen()) if reference else compare_paths(seen(), broken)
        assert found[part] == math.inf


def test_a_gradient_where_there_should_be_none_is_infinitely_far() -> None:
    other = seen()
    other.gradients["zero"][0] = 1e-9

    assert compare_paths(seen(), other)["gradients"] == math.inf
