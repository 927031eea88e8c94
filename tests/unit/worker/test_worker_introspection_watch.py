"""Which experts see tokens and where a choice is a near tie, of a router that nobody has described."""

from __future__ import annotations

from typing import Any

import pytest
import torch

from harness.worker.checkpoints.family import Checkpoint, Introspected
from harness.worker.introspection.parts import experts_of
from harness.worker.introspection.watch import ChoiceWatch, chosen
from harness.worker.stages.experts_watch import NoRouterFoundError, watch_experts
from tests.unit.worker.introspection_toys import HIDDEN, ToyListBlock, toy


def test_a_choice_is_read_from_the_numbers_of_experts() -> None:
    seen = chosen([torch.zeros(2, 6), torch.tensor([[1, 3], [0, 4]]), torch.ones(2, 2)], 4)

    # The second token's 4 is beyond the four experts: it does nothing there.
    assert seen.tolist() == [[False, True, False, True], [True, False, False, False]]


def test_a_choice_is_read_from_what_every_expert_is_given() -> None:
    given = torch.tensor([[1.0, 2.0], [0.0, 0.0], [0.0, 0.0], [0.5, 0.0]])  # two experts, two tokens each

    assert chosen([given], 2).tolist() == [[True, False], [False, True]]


def test_no_choice_is_invented() -> None:
    with pytest.raises(NoRouterFoundError, match="which tokens are whose"):
        chosen([torch.ones(4, 2), [2, 2]], 2)


def _watched() -> tuple[Any, ChoiceWatch]:
    model = toy()
    with torch.no_grad():
        model.layers[1].mlp.gate.weight.copy_(torch.eye(4, HIDDEN))
    checkpoint = Checkpoint(
        config={},
        tensors=(),
        routing=None,
        layers_with_experts=(0,),
        num_experts=4,
        introspected=Introspected(model_type="toy", experts=tuple(experts_of(model))),
    )
    watch = watch_experts(model, checkpoint)
    assert isinstance(watch, ChoiceWatch)
    return model.layers[1].mlp, watch


def test_a_near_tie_is_where_asking_again_gives_another_answer() -> None:
    block, watch = _watched()
    hidden = torch.tensor([[3.0, 2.0, 1.0, 0.0, 0.0, 0.0], [3.0, 2.0, 2.0, 0.0, 0.0, 0.0]])

    with watch.recording(), watch.counting("evaluation"):
        block(hidden)

    assert watch.gaps[0].tolist() == [float("inf"), 0.0]
    # Asking again counts nothing: two tokens, two experts each.
    assert int(watch.counts["evaluation"][0].sum()) == 4
    assert watch.runs("evaluation", 2) == 1.0
    watch.remove()
    assert not block._forward_hooks


def test_layers_that_are_gone_through_several_times_count_once() -> None:
    block, watch = _watched()
    hidden = torch.tensor([[3.0, 2.0, 1.0, 0.0, 0.0, 0.0]])
    with watch.recording():
        for _ in range(3):
            block(hidden)

    with watch.counting("training"):
        for _ in range(3):
            block(hidden)

    assert watch.runs("training", 1) == 1.0
    with watch.counting("training"):
        for _ in range(3):
            block(hidden)
    assert watch.runs("training", 1) == 2.0  # computed again, as checkpointing does


def test_nothing_is_counted_and_nothing_asked_outside() -> None:
    block, watch = _watched()

    block(torch.ones(2, HIDDEN))

    assert watch.counts == {}
    assert watch.gaps == {}
    assert watch.runs("training", 2) == 0.0


def test_experts_that_are_modules_are_asked_about_each_token_alone() -> None:
    model = toy()
    model.layers[1].mlp = block = ToyListBlock()
    with torch.no_grad():
        block.gate.weight.copy_(torch.eye(4, HIDDEN))
    places = tuple(experts_of(model))
    inside = Introspected(model_type="toy", experts=places)
    watch = ChoiceWatch(
        model,
        Checkpoint(config={}, tensors=(), routing=None, layers_with_experts=(0,), num_experts=4, introspected=inside),
    )
    hidden = torch.tensor([[[3.0, 2.0, 1.0, 0.0, 0.0, 0.0], [3.0, 2.0, 2.0, 0.0, 0.0, 0.0]]])

    with watch.recording(), watch.counting("evaluation"):
        block(hidden)

    assert places[0].parameters == ()
    assert watch.gaps[0].tolist() == [float("inf"), 0.0]
    assert watch.counts["evaluation"][0].sum() == 4
    assert watch.counts["evaluation"][0][0] == 2  # both tokens choose the first
    assert watch.runs("evaluation", 2) == 1.0
