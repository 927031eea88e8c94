"""What a model must say however it is asked, tried on models that are a table."""

from __future__ import annotations

import json
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
import torch
from control_cells import request_in

from harness.worker.observation import Observation
from harness.worker.stages.consistency import (
    check_cache,
    check_generation,
    check_modes,
    check_unchanged,
    whole_of,
)
from harness.worker.stages.data import (
    PROMPT_LENGTH,
    PROMPTS,
    SAMPLE_NEW_TOKENS,
    SAMPLE_PROMPT_LENGTH,
    SAMPLES,
    evaluation_prompts,
)
from harness.worker.stages.evaluate import Sample, logits_of

VOCAB = 12
CLEAR = torch.ones(PROMPTS, PROMPT_LENGTH, dtype=torch.bool)


class Table(torch.nn.Module):
    """Says after each token what the table has for it, and something more in training mode."""

    def __init__(self, *, training_adds: float = 0.0) -> None:
        super().__init__()
        self.table = torch.randn(VOCAB, VOCAB, generator=torch.Generator().manual_seed(5))
        self.training_adds = training_adds

    def forward(self, input_ids: torch.Tensor, **_: Any) -> Any:
        """Return what stands in the table for each token."""
        said = self.table[input_ids].clone()
        if self.training:
            said[..., 3] += self.training_adds
        return SimpleNamespace(logits=said)


def checked(tmp_path: Path, *, stops: object = 999) -> Observation:
    """The record of a cell whose base ends samples at these tokens."""
    (tmp_path / "base").mkdir()
    (tmp_path / "base" / "generation_config.json").write_text(json.dumps({"eos_token_id": stops}))
    return Observation(tmp_path / "observation.json")


def passed(observation: Observation, name: str | None = None) -> bool:
    """Whether the check passed, the only one or the one of that name; its control must be rejected in any case."""
    check, control = (it for it in observation.data["checks"] if name is None or it["name"].endswith(name))
    assert control["name"] == f"control:{check['name']}"
    assert control["passed"]
    return bool(check["passed"])


def greedy(model: Table, count: int) -> list[Sample]:
    """What greedy decoding gives after the last token of each prompt's beginning."""
    samples = []
    for prompt in evaluation_prompts(VOCAB, 0)[:SAMPLES, :SAMPLE_PROMPT_LENGTH].tolist():
        tokens: list[int] = []
        for _ in range(count):
            tokens.append(int(model.table[(prompt + tokens)[-1]].argmax()))
        samples.append(Sample(tokens=tokens, margins=[1.0] * count))
    return samples


def generation(
    observation: Observation,
    tmp_path: Path,
    model: Table,
    samples: list[Sample],
    *,
    moved: float = 0.0,
    gap: float = 1.0,
    lost: int = 0,
) -> None:
    """Check samples whose logits are the model's own, those of a sample's last token but for what is asked."""
    prompts = evaluation_prompts(VOCAB, 0)[:, :SAMPLE_PROMPT_LENGTH].tolist()
    cached = []
    for prompt, sample in zip(prompts, samples, strict=False):
        said = model.table[[prompt[-1], *sample.tokens][: len(sample.tokens)]].clone()
        said[-1, 2] += moved
        cached.append(said[: len(said) - lost])
    lengths = iter([SAMPLE_PROMPT_LENGTH + len(sample.tokens) for sample in samples])

    @contextmanager
    def recording() -> Iterator[None]:
        yield
        watch.gaps = {layer: torch.ones(length) for length in [next(lengths)] for layer in range(2)}
        watch.gaps[1][-2] = gap  # what the last token was taken from

    watch: Any = SimpleNamespace(recording=recording, gaps={})
    request = request_in(tmp_path)
    whole = whole_of(model, request, samples, watch=watch, vocab=VOCAB)
    check_generation(observation, request, samples, whole)
    check_cache(observation, request, cached, whole)


def test_greedy_tokens_are_the_likeliest(tmp_path: Path) -> None:
    model, observation = Table().eval(), checked(tmp_path)

    generation(observation, tmp_path, model, greedy(model, SAMPLE_NEW_TOKENS))
    assert passed(observation, "generation")
    assert passed(observation, "cache")


@pytest.mark.parametrize(
    ("moved", "gap", "fine"), [(0.01, 1.0, False), (-0.01, 1.0, False), (float("nan"), 1.0, False), (0.01, 0.0, True)]
)
def test_logits_with_a_cache_are_those_without_near_ties_apart(
    tmp_path: Path, moved: float, gap: float, fine: bool
) -> None:
    model, observation = Table().eval(), checked(tmp_path)

    generation(observation, tmp_path, model, greedy(model, SAMPLE_NEW_TOKENS), moved=moved, gap=gap)
    assert passed(observation, "cache") is fine
    assert passed(observation, "generation")


def test_as_many_logits_as_tokens(tmp_path: Path) -> None:
    model, observation = Table().eval(), checked(tmp_path)

    generation(observation, tmp_path, model, greedy(model, SAMPLE_NEW_TOKENS), lost=1)
    assert not passed(observation, "cache")


@pytest.mark.parametrize("at", [0, SAMPLE_NEW_TOKENS - 1])
def test_a_token_that_is_not_the_likeliest_is_seen(tmp_path: Path, at: int) -> None:
    model, observation = Table().eval(), checked(tmp_path)
    samples = greedy(model, SAMPLE_NEW_TOKENS)
    samples[1].tokens[at] = int(model.table.sum(0).argmin())

    generation(observation, tmp_path, model, samples)
    assert not passed(observation, "generation")
    assert "sample 1" in observation.data["checks"][0]["detail"]


@pytest.mark.parametrize("count", [1, SAMPLE_NEW_TOKENS - 1, SAMPLE_NEW_TOKENS + 1])
def test_a_sample_that_stops_early_or_goes_on_is_seen(tmp_path: Path, count: int) -> None:
    model, observation = Table().eval(), checked(tmp_path)

    generation(observation, tmp_path, model, greedy(model, count))
    assert not passed(observation, "generation")
    assert "sample 0, sample 1, sample 2 did not end where it should" in observation.data["checks"][0]["detail"]


@pytest.mark.parametrize("kept", [1, 2])
def test_a_sample_ends_at_its_first_stop_token(tmp_path: Path, kept: int) -> None:
    model = Table().eval()
    whole = greedy(model, SAMPLE_NEW_TOKENS)
    stops = [sample.tokens[3] for sample in whole]
    firsts = [next(at for at, token in enumerate(sample.tokens) if token in stops) for sample in whole]
    cut = [replace(sample, tokens=sample.tokens[: first + kept]) for sample, first in zip(whole, firsts, strict=True)]
    observation = checked(tmp_path, stops=stops)

    generation(observation, tmp_path, model, cut)
    assert passed(observation, "generation") is (kept == 1)


@pytest.mark.parametrize(("adds", "fine"), [(0.0, True), (0.01, False), (float("nan"), False)])
def test_training_mode_says_the_same(tmp_path: Path, adds: float, fine: bool) -> None:
    model, observation = Table(training_adds=adds), checked(tmp_path)
    request = request_in(tmp_path)
    logits = logits_of(model, request, VOCAB)
    check_modes(observation, model, request, logits=logits, clear=CLEAR, vocab=VOCAB, dropout=False)
    assert passed(observation) is fine
    assert not model.training


class Dropping(Table):
    """A table whose LoRA has dropout, as PEFT names it."""

    def __init__(self, share: float, *, training_adds: float = 0.0) -> None:
        super().__init__(training_adds=training_adds)
        dropout = torch.nn.ModuleDict({"default": torch.nn.Dropout(share)})
        self.q_proj = torch.nn.ModuleDict({"lora_dropout": dropout})
        self.dropout = dropout["default"]

    def forward(self, input_ids: torch.Tensor, **more: Any) -> Any:
        """Return what stands in the table, some of it left out in training mode."""
        said = super().forward(input_ids, **more)
        return SimpleNamespace(logits=self.dropout(said.logits))


@pytest.mark.parametrize(
    ("share", "adds", "fine"), [(0.1, 0.0, True), (0.0, 0.0, False), (0.1, 0.01, False), (0.1, float("nan"), False)]
)
def test_dropout_is_awake_in_training_mode_and_all_else_says_the_same(
    tmp_path: Path, share: float, adds: float, fine: bool
) -> None:
    model, observation = Dropping(share, training_adds=adds), checked(tmp_path)
    request = request_in(tmp_path)
    logits = logits_of(model, request, VOCAB)
    check_modes(observation, model, request, logits=logits, clear=CLEAR, vocab=VOCAB, dropout=True)
    assert passed(observation) is fine
    assert not model.dropout.training


@pytest.mark.parametrize(("adds", "fine"), [(0.0, True), (0.01, False)])
def test_an_untrained_lora_changes_nothing(tmp_path: Path, adds: float, fine: bool) -> None:
    model, observation = Table().eval(), checked(tmp_path)
    base = logits_of(model, request_in(tmp_path), VOCAB)
    model.table[:, 2] += adds
    check_unchanged(observation, model, request_in(tmp_path), base_logits=base, clear=CLEAR, vocab=VOCAB)
    assert passed(observation) is fine
