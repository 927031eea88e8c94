"""What a model must say however it is asked: untrained as its base does, in either mode, with or without a cache.

Nothing is compared with another model's files here. A fault that is in every model alike still shows.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.worker.observation import Judgement, Observation
from harness.worker.request import Request
from harness.worker.stages.data import SAMPLE_NEW_TOKENS, SAMPLE_PROMPT_LENGTH, evaluation_prompts
from harness.worker.stages.evaluate import Sample, generated, logits_of, set_mode
from harness.worker.stages.experts_watch import ExpertWatch
from harness.worker.stages.forward_paths import lora_in_float32
from harness.worker.stages.functional import distance, judge_logprobs

NEAR_TIE = 1e-4
"""Router gap, in logits, below which a generated position is not compared. Both forwards are the trained model's own,
in float32, whatever is stored and whatever merges: ``near_tie_epsilon`` is wider where a merge rounds."""


def check_unchanged(
    observation: Observation, peft_model: Any, request: Request, *, base_logits: Any, clear: Any, vocab: int
) -> None:
    """Record how far a model with an untrained LoRA is from its base: lora_B starts at zero."""
    judgement, control = judge_logprobs(
        base_logits,
        logits_of(peft_model, request, vocab),
        clear,
        band=request.bands.definition_max,
        detail="the LoRA changes what the model says before it is trained",
    )
    observation.judge("unchanged", "train", judgement, control=control)


def check_modes(
    observation: Observation, peft_model: Any, request: Request, *, logits: Any, clear: Any, vocab: int, dropout: bool
) -> None:
    """Record how far the trained model in training mode is from itself in evaluation mode, dropout apart.

    Where there is ``dropout``, it must change what the model says in training mode.
    """
    import torch

    prompts = evaluation_prompts(vocab, request.seed).to(request.device)
    peft_model.train()

    def said() -> Any:
        with torch.no_grad():
            return peft_model(input_ids=prompts).logits.float().cpu()

    dropped = said() if dropout else None
    for name, module in peft_model.named_modules():
        if dropout and ".lora_dropout." in name:  # one that nobody asked for must show
            module.eval()
    training = said()
    set_mode(peft_model)
    band = request.bands.definition_max
    judgement, control = judge_logprobs(
        logits,
        training,
        clear,
        band=band,
        detail="the model says something else in training mode than in evaluation mode",
    )
    if dropped is not None and not distance(logits, dropped, clear).max_logprob_diff > band:
        judgement = replace(judgement, passed=False, detail="the model says the same with dropout in training mode")
    observation.judge("modes", "train", judgement, control=control)


@dataclass(frozen=True, kw_only=True)
class Whole:
    """What one forward without a cache says of a sample's new tokens.

    Attributes:
        logits: what each was to be taken from, (new tokens, vocab) float32 on the CPU.
        gaps: the smallest router gap that each depends on, (new tokens,) float32.
    """

    logits: Any
    gaps: Any


def check_generated(
    observation: Observation, peft_model: Any, request: Request, *, watch: ExpertWatch, vocab: int
) -> list[Sample]:
    """Let the trained model generate, hold that against forwards without a cache, and return the samples.

    Number by number the LoRA is compared in float32. In the bf16 that TRL 1.x trains quantised models in, the order of
    sums moves log-probabilities by up to 0.02, which is what a cache in bf16 does.
    """
    samples, cached = generated(peft_model, request, vocab)
    whole = whole_of(peft_model, request, samples, watch=watch, vocab=vocab)
    check_generation(observation, request, samples, whole)
    if any("float32" not in str(p.dtype) for name, p in peft_model.named_parameters() if ".lora_" in name):
        with lora_in_float32(peft_model):
            again, cached = generated(peft_model, request, vocab, count=1)
            whole = whole_of(peft_model, request, again, watch=watch, vocab=vocab)
    check_cache(observation, request, cached, whole)
    return samples


def whole_of(model: Any, request: Request, samples: Sequence[Sample], *, watch: ExpertWatch, vocab: int) -> list[Whole]:
    """Say each sample with its prompt in one forward without a cache."""
    import torch

    found = []
    prompts = evaluation_prompts(vocab, request.seed)[: len(samples), :SAMPLE_PROMPT_LENGTH]
    for prompt, sample in zip(prompts.tolist(), samples, strict=True):
        sequence = torch.tensor([prompt + sample.tokens], device=request.device)
        with torch.no_grad(), watch.recording():
            logits = model(input_ids=sequence, use_cache=False).logits[0]
        gaps = torch.stack(list(watch.gaps.values())).amin(0).cummin(0)[0]
        new = slice(len(prompt) - 1, -1)
        found.append(Whole(logits=logits[new].float().cpu(), gaps=gaps[new]))
    return found


def check_generation(
    observation: Observation, request: Request, samples: Sequence[Sample], whole: Sequence[Whole]
) -> None:
    """Record the shortfall of the worst greedy token: how much less likely it is than the likeliest one, in nats.

    The likelihood is that of one forward over the whole sequence, without a cache.
    """
    shortfalls: dict[str, float] = {}
    altered = 0.0
    for number, (sample, said) in enumerate(zip(samples, whole, strict=True)):
        for at, (token, before) in enumerate(zip(sample.tokens, said.logits.double().log_softmax(-1), strict=True)):
            shortfalls[f"sample {number}, token {at}"] = float(before.max() - before[token])
            altered = float(before.max() - before.min())

    unended = [
        f"sample {number}" for number, sample in enumerate(samples) if not _ends(sample.tokens, stop_tokens(request))
    ]

    def judged(found: dict[str, float]) -> Judgement:
        band, where = request.bands.logprob_max, worst_of(found) if found else "no token"
        ending = f"; {', '.join(unended)} did not end where it should" if unended else ""
        return Judgement(
            value=found.get(where),
            band=f"<= {band:g}",
            passed=bool(found) and found[where] <= band and not unended,
            detail=f"the token that is furthest from the likeliest: {where}{ending}",
        )

    observation.judge("generation", "generate", judged(shortfalls), control=judged({**shortfalls, "altered": altered}))


def check_cache(observation: Observation, request: Request, cached: Sequence[Any], whole: Sequence[Whole]) -> None:
    """Record how far logits that were computed token by token, with a cache, are from those of the whole sequence.

    Args:
        observation: where the check goes.
        request: the cell.
        cached: of each sample, (new tokens, vocab) float32.
        whole: the same by a forward without a cache.
    """
    import torch

    band = request.bands.definition_max
    if [len(sample) for sample in cached] != [len(sample.logits) for sample in whole]:
        words = "there are more or fewer logits than tokens"
        lost = Judgement(value=math.inf, band=f"<= {band:g}", passed=False, detail=words)
        observation.judge("cache", "generate", lost, control=lost)
        return
    judgement, control = judge_logprobs(
        torch.cat([sample.logits for sample in whole])[None],
        torch.cat(list(cached))[None],
        torch.cat([sample.gaps for sample in whole])[None] >= NEAR_TIE,
        band=band,
        detail="the model says something else with a cache than without",
    )
    observation.judge("cache", "generate", judgement, control=control)


def stop_tokens(request: Request) -> set[int]:
    """Return the tokens that end a sample, by the base's own generation_config.json."""
    found = json.loads((request.base / "generation_config.json").read_text())["eos_token_id"]
    return set(found) if isinstance(found, list) else {found}


def _ends(tokens: list[int], stops: set[int]) -> bool:
    """Say whether a sample ends at its first stop token, or has none and is as long as asked."""
    first = next((at for at, token in enumerate(tokens) if token in stops), None)
    return len(tokens) == (SAMPLE_NEW_TOKENS if first is None else first + 1)


def worst_of(found: Mapping[str, float]) -> str:
    """Return the key of the largest value; what is no number is worse than any."""
    return max(found, key=lambda name: math.inf if math.isnan(found[name]) else found[name])
