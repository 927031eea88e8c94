"""The gradient of a step against that of its documents, for a model that is small enough to do by hand."""

from __future__ import annotations

from contextlib import nullcontext
from types import SimpleNamespace
from typing import Any

import pytest
import torch

from harness.worker.stages.documents import Document
from harness.worker.stages.gradient_watch import GradientWatch, judge_gradient

BAND = 1e-4
MAX_NORM = 0.1
"""Less than the gradient's, so that it is clipped."""
DOCUMENTS = [Document.whole([1, 2, 3]), Document.whole([3, 1]), Document.whole([2, 2, 1, 3])]
PREDICTIONS = 2 + 1 + 3


class Bigrams(torch.nn.Module):
    """Says the next token by the last one alone."""

    def __init__(self) -> None:
        super().__init__()
        self.table = torch.nn.Parameter(torch.randn(4, 4, generator=torch.Generator().manual_seed(1)))
        self.bias = torch.nn.Parameter(torch.zeros(4))

    def forward(self, input_ids: torch.Tensor, use_cache: bool) -> Any:  # noqa: ARG002, D102
        return SimpleNamespace(logits=self.table[input_ids] + self.bias)


def trained(*, factor: float = 1.0, forgotten: int = 0, max_norm: float = MAX_NORM) -> GradientWatch:
    """Look at one step whose gradients are made as a trainer should, but for what is asked."""
    model = Bigrams()
    losses = []
    for document in DOCUMENTS[forgotten:]:
        ids = torch.tensor([document.tokens])
        logits = model(input_ids=ids, use_cache=False).logits
        losses.append(torch.nn.functional.cross_entropy(logits[0, :-1], ids[0, 1:], reduction="sum"))
    (factor * sum(losses) / PREDICTIONS).backward()
    torch.nn.utils.clip_grad_norm_(model.parameters(), max_norm)
    watch: Any = SimpleNamespace(pausing=nullcontext, recording=nullcontext, router_logits={})
    found = GradientWatch(tensors=dict(model.named_parameters()), watch=watch, device="cpu", max_norm=max_norm)
    found.look(model, [DOCUMENTS[:2], DOCUMENTS[2:]], balancing=None, divisor=PREDICTIONS)
    assert model.training
    return found


def test_the_gradient_of_all_documents_in_two_batches_is_right() -> None:
    found = trained()

    assert found.worst < 1e-6
    assert found.altered == pytest.approx(1e-3, rel=1e-2)


def test_a_gradient_that_is_half_as_large_is_named_so() -> None:
    found = trained(factor=0.5, max_norm=1e6)

    assert found.worst == pytest.approx(0.5, rel=1e-3)
    assert "right but for a factor, the same for all tensors of a step: 0.5 in" in found.describe(BAND)


def test_clipping_hides_a_factor() -> None:
    """So a recipe that adds up batches does not clip."""
    assert trained(factor=0.99).worst < 1e-6


def test_a_document_that_is_left_out_is_no_factor() -> None:
    found = trained(forgotten=1)

    assert found.worst > 0.1
    assert "furthest from that of the sequences alone" in found.describe(BAND)


@pytest.mark.parametrize(("value", "runs", "passed"), [(1e-5, 2, True), (1e-3, 2, False), (1e-5, 1, False)])
def test_layers_must_be_computed_as_often_as_asked(value: float, runs: float, passed: bool) -> None:
    assert judge_gradient(value, "what", band=BAND, runs=runs, wanted_runs=2).passed is passed
