"""The gradient of a step against that of its documents, for a model that is small enough to do by hand."""

from __future__ import annotations

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.worker.stages.documents import Batches, Document
from harness.worker.stages.gradient_watch import GradientWatch, Off, RandomState, judge_gradient

BAND = 1e-4
MAX_NORM = 0.1
"""Less than the gradient's, so that it is clipped."""
DOCUMENTS = [Document.whole([1, 2, 3]), Document.whole([3, 1]), Document.whole([2, 2, 1, 3])]
PREDICTIONS = 2 + 1 + 3


class Bigrams(torch.nn.Module):
    """Says the next token by the last one alone, some of it left out where there is dropout."""

    def __init__(self, dropout: float = 0.0) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
        self.bias = torch.nn.Parameter(torch.zeros(4))
        self.dropout = torch.nn.Dropout(dropout)

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:  # noqa: ARG002, D102
        return SimpleNamespace(logits=self.dropout(self.table[input_ids]) + self.bias)


def trained(
    *,
    model: Bigrams | None = None,
    factor: float = 1.0,
    forgotten: int = 0,
    kept: float = 0.0,
    told_norm: float = MAX_NORM,
    max_norm: float = MAX_NORM,
    dropout: bool = False,
    replayed: bool = True,
) -> GradientWatch:
    """Look at one step whose gradients are made as a trainer should, but for what is asked.

    All documents of a batch are said before the loss is divided, as ours are: with dropout each has a mask of its own.
    """
    model = model or Bigrams()
    state = RandomState.now()
    losses = []
    for document in DOCUMENTS[forgotten:]:
        ids = torch.tensor([document.tokens])
        logits = model(input_ids=ids, use_cache=False).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
    (factor * sum(losses) / PREDICTIONS).backward()
    for weight in model.parameters():
        assert weight.grad is not None
        weight.grad += kept
    torch.nn.utils.clip_grad_norm_(model.parameters(), told_norm)
    watch: Any = SimpleNamespace(pausing=nullcontext, recording=nullcontext, router_logits={})
    found = GradientWatch(
        tensors=dict(model.named_parameters()), watch=watch, device="cpu", max_norm=max_norm, band=BAND, dropout=dropout
    )
    told = float(sum(losses).detach()) / PREDICTIONS  # type: ignore[union-attr]
    batches = Batches(known=DOCUMENTS, packed=False, parts=[DOCUMENTS], told=told)
    given = {weight: None if weight.grad is None else weight.grad.clone() for weight in model.parameters()}
    before = RandomState.now()
    drawn = [state if replayed else before]
    objective = found.look(model, batches, step=3, drawn=drawn, balancing=None)
    assert list(found.norms) == [3]
    assert objective.told == told
    assert model.training
    assert model.dropout.training
    assert torch.equal(before.cpu, torch.get_rng_state())
    assert all(torch.equal(weight.grad, gradient) for weight, gradient in given.items())
    return found


def worst_of(found: GradientWatch) -> Off:
    """The gradient that was furthest."""
    assert found.worst is not None
    return found.worst


def test_the_gradient_of_all_documents_is_right() -> None:
    found = trained()

    assert worst_of(found).distance < 1e-6
    assert found.norms[3] > MAX_NORM
    assert found.altered is not None
    assert found.altered.distance == pytest.approx(3 * BAND, rel=1e-2)


def test_a_gradient_that_is_half_as_large_is_named_so() -> None:
    found = trained(factor=0.5, told_norm=1e6, max_norm=1e6)

    assert worst_of(found).distance == pytest.approx(0.5, rel=1e-3)
    assert "right but for a factor, the same for all tensors of a step: 0.5 in" in found.describe()


def test_clipping_hides_a_factor() -> None:
    """So a recipe that adds up batches does not clip."""
    assert worst_of(trained(factor=0.99)).distance < 1e-6


@pytest.mark.parametrize(
    ("told", "right"), [({3: 1.0}, True), ({3: 0.99}, False), ({3: float("nan")}, False), ({}, False)]
)
def test_the_norm_before_clipping_does_not_hide_it(told: dict[int, float], right: bool) -> None:
    found = trained()
    found.compare_norms({step: share * found.norms[3] for step, share in told.items()})

    assert (worst_of(found).share <= 1) is right
    assert right or worst_of(found).where == "the norm before clipping, step 3"


def test_a_gradient_that_was_not_clipped_is_seen() -> None:
    found = trained(told_norm=1e6)

    assert worst_of(found).share > 1
    assert "right but for a factor" in found.describe()


def test_a_gradient_of_the_step_before_that_was_kept_is_seen() -> None:
    assert worst_of(trained(kept=0.01)).share > 1


def test_a_hook_of_a_tensor_is_not_ours() -> None:
    """It changes the gradient that training has, and so it must show."""
    model = Bigrams()
    model.table.register_hook(lambda gradient: gradient * torch.tensor([1.0, 1.0, 0.0, 1.0]).unsqueeze(1))

    assert worst_of(trained(model=model)).where == "table, step 3"
    assert worst_of(trained(model=model)).share > 1


def test_a_module_that_has_two_names_is_left_as_it_was() -> None:
    """So it is where two layers share one lora_A: what is trained is never ours."""
    inner, outer = Bigrams(), Bigrams()
    outer.first = outer.second = inner
    outer.forward = inner.forward  # type: ignore[method-assign]
    before = [(id(module), leaf, id(it)) for module in outer.modules() for leaf, it in module.named_parameters()]
    tensors = {f"{name}.{leaf}": it for name in ("first", "second") for leaf, it in inner.named_parameters()}
    for weight in inner.parameters():
        weight.grad = torch.zeros_like(weight)
    watch: Any = SimpleNamespace(pausing=nullcontext, recording=nullcontext, router_logits={})
    found = GradientWatch(tensors=tensors, watch=watch, device="cpu", max_norm=1e6, band=BAND)
    batches = Batches(known=DOCUMENTS, packed=False, parts=[DOCUMENTS], told=1.0)
    for step in (1, 2):
        found.look(outer, batches, step=step, drawn=[RandomState.now()], balancing=None)

    after = [(id(module), leaf, id(it)) for module in outer.modules() for leaf, it in module.named_parameters()]
    assert after == before
    assert found.norms[1] == found.norms[2] > 0
    assert all(isinstance(it, torch.nn.Parameter) for it in outer.parameters())


def test_a_model_that_makes_nothing_of_a_tensor_has_no_gradient() -> None:
    """Training had one all the same."""
    model, other = Bigrams(), Bigrams()
    weight = torch.nn.Parameter(torch.ones(2))
    model.register_parameter("unused", weight)
    weight.grad = torch.ones(2)
    for parameter in other.parameters():
        parameter.requires_grad_(requires_grad=False)
    model.forward = other.forward  # type: ignore[method-assign]
    watch: Any = SimpleNamespace(pausing=nullcontext, recording=nullcontext, router_logits={})
    found = GradientWatch(tensors={"unused": weight}, watch=watch, device="cpu", max_norm=1e6, band=BAND)
    batches = Batches(known=DOCUMENTS, packed=False, parts=[DOCUMENTS], told=1.0)
    found.look(model, batches, step=1, drawn=[RandomState.now()], balancing=None)

    assert found.norms == {1: 0.0}
    assert not worst_of(found).share <= 1


def test_a_document_that_is_left_out_is_no_factor() -> None:
    found = trained(forgotten=1)

    assert worst_of(found).distance > 0.1
    assert "furthest from that of the sequences alone" in found.describe()


@pytest.mark.parametrize(("replayed", "right"), [(True, True), (False, False)])
def test_dropout_leaves_out_what_it_left_out_in_training(replayed: bool, right: bool) -> None:
    found = trained(model=Bigrams(dropout=0.5), dropout=True, replayed=replayed)

    assert (worst_of(found).share <= 1) is right


@pytest.mark.parametrize(("digits", "right"), [(1, True), (4, False)])
def test_under_autocast_a_float32_tensor_has_bfloat16_s_room(digits: int, right: bool) -> None:
    weight = torch.nn.Parameter(torch.ones(4))
    watch: Any = None
    found = GradientWatch(tensors={"w": weight}, watch=watch, device="cpu", max_norm=1e6, band=BAND, autocast=True)
    weight.grad = torch.full((4,), 1 + digits / 128)
    found._compare({"w": torch.ones(4)}, 1)

    assert (worst_of(found).share <= 1) is right
    assert replace(found, autocast=False)._room("w") == BAND


@pytest.mark.parametrize(("digits", "right"), [(1, True), (4, False)])
def test_a_tensor_of_fewer_digits_may_be_off_by_two_of_its_last(digits: int, right: bool) -> None:
    """All of a gradient is off by the same, 1/128 for each digit of bfloat16."""
    weight = torch.nn.Parameter(torch.ones(4, dtype=torch.bfloat16))
    watch: Any = None
    found = GradientWatch(tensors={"w": weight}, watch=watch, device="cpu", max_norm=1e6, band=BAND)
    weight.grad = (torch.full((4,), 1 + digits / 128)).bfloat16()
    found._compare({"w": torch.ones(4)}, 1)

    assert worst_of(found).distance == pytest.approx(digits / 128)
    assert worst_of(found).room == pytest.approx(BAND + 2 / 128)
    assert (worst_of(found).share <= 1) is right


@pytest.mark.parametrize("told", [0.0, float("nan")])
def test_a_gradient_that_is_missing_or_no_number_is_seen(told: float) -> None:
    weight, watch = torch.nn.Parameter(torch.ones(4)), None
    found = GradientWatch(tensors={"w": weight}, watch=watch, device="cpu", max_norm=1e6, band=BAND)  # type: ignore[arg-type]
    weight.grad = torch.full((4,), told) if told else None
    found._compare({"w": torch.ones(4)}, 1)

    assert not worst_of(found).share <= 1
    assert found.describe() == "the one that is furthest from that of the sequences alone: w, step 1"


RIGHT = Off(distance=1e-5, room=BAND, where="w, step 1", factor=1.0)


@pytest.mark.parametrize(
    ("off", "all_seen", "runs", "passed"),
    [
        (RIGHT, True, 2, True),
        (replace(RIGHT, distance=1e-3), True, 2, False),
        (RIGHT, True, 1, False),
        (RIGHT, False, 2, False),
        (None, True, 2, False),
    ],
)
def test_layers_must_be_computed_as_often_as_asked_and_steps_be_there(
    off: Off | None, all_seen: bool, runs: float, passed: bool
) -> None:
    assert judge_gradient(off, "what", all_seen=all_seen, runs=runs, wanted_runs=2).passed is passed
