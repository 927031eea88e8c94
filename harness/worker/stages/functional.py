"""The functional gate: how far what a model says lies from what the trained model said."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

from harness.worker.observation import Judgement
from harness.worker.stages.evaluate import Sample


@dataclass(frozen=True, kw_only=True)
class Distance:
    """KL(reference ‖ other) over positions, and what goes with it.

    Attributes:
        kl: mean over clear positions, nats; NaN when there is none.
        kl_p99: 99th percentile over clear positions.
        kl_max: largest over clear positions.
        kl_near_tie: mean over positions near a router tie, or None when there is none.
        max_logprob_diff: largest |Δ log p| over clear positions and the whole vocabulary, nats.
        top1_agreement: share of clear positions with the same most likely token.
    """

    kl: float
    kl_p99: float
    kl_max: float
    kl_near_tie: float | None
    max_logprob_diff: float
    top1_agreement: float


def distance(reference: Any, other: Any, clear: Any) -> Distance:
    """Compare two sets of logits, in float64 log-softmax of float32 logits, never clamped.

    Args:
        reference: (P, T, V) float32; the distribution that the KL's expectation is taken under.
        other: (P, T, V) float32.
        clear: (P, T) bool, False where routing is a near tie.
    """
    import torch

    p, q = reference.double().log_softmax(-1), other.double().log_softmax(-1)
    kl = (p.exp() * (p - q)).sum(-1)
    difference = (p - q).abs().amax(-1)
    chosen, tied = kl[clear], kl[~clear]
    if not len(chosen):
        nan = float("nan")
        return Distance(
            kl=nan, kl_p99=nan, kl_max=nan, kl_near_tie=float(tied.mean()), max_logprob_diff=nan, top1_agreement=nan
        )
    same = p.argmax(-1) == q.argmax(-1)
    return Distance(
        kl=float(chosen.mean()),
        kl_p99=float(torch.quantile(chosen, 0.99)),
        kl_max=float(chosen.max()),
        kl_near_tie=float(tied.mean()) if len(tied) else None,
        max_logprob_diff=float(difference[clear].max()),
        top1_agreement=float(same[clear].double().mean()),
    )


def one_moved(logits: Any, clear: Any, by: float) -> Any:
    """Return a copy in which one logit is moved: of the least likely token, at the first clear position.

    That token's log-probability moves by nearly as much. A control is made of it.

    Args:
        logits: (P, T, V) float32.
        clear: (P, T) bool.
        by: how far.
    """
    moved = logits.clone()
    places = clear.nonzero()
    if len(places):
        prompt, at = places[0].tolist()
        moved[prompt, at, int(logits[prompt, at].argmin())] += by
    return moved


LOWERED = 0.1
"""How much lower the logits of the likeliest tokens are in a control, as ``harness.contract.checks`` says."""


def likeliest_lowered(logits: Any) -> Any:
    """Return a copy in which the likeliest token of every position is a little less likely: a KL of about 1e-3 nats."""
    best = logits.argmax(-1, keepdim=True)
    return logits.scatter_add(-1, best, logits.new_full(best.shape, -LOWERED))


MOVED = 3
"""By how many times the band the logit of a control is moved, as ``harness.contract.checks`` says."""


def judge_logprobs(reference: Any, logits: Any, clear: Any, *, band: float, detail: str) -> tuple[Judgement, Judgement]:
    """Judge the largest difference of a log-probability, of these logits and of altered ones, the control.

    Args:
        reference: what should be said, (P, T, V).
        logits: what is said, (P, T, V) float32.
        clear: (P, T) bool.
        band: the largest difference allowed, in nats.
        detail: what it means where it is larger.
    """

    def judged(said: Any) -> Judgement:
        difference = distance(reference, said, clear).max_logprob_diff
        return Judgement(value=difference, band=f"<= {band:g}", passed=difference <= band, detail=detail)

    return judged(logits), judged(one_moved(logits, clear, MOVED * band))


def judge_kl(reference: Any, logits: Any, clear: Any, *, band: float) -> tuple[Judgement, Judgement]:
    """Judge KL(reference ‖ these logits), and that of altered ones, the control.

    Args:
        reference: what should be said, (P, T, V) float32.
        logits: what is said, (P, T, V) float32.
        clear: (P, T) bool.
        band: the largest KL allowed, in nats.
    """

    def judged(said: Any) -> Judgement:
        kl = distance(reference, said, clear).kl
        return Judgement(value=kl, band=f"<= {band:g}", passed=kl <= band)

    return judged(logits), judged(likeliest_lowered(logits))


@dataclass(frozen=True, kw_only=True)
class Matches:
    """How greedy samples compare.

    Attributes:
        matched: samples that match token by token.
        tied: samples that part at a token which was a tie for the reference. There a right merge may choose either.
        first_divergence: which sample and token differ first, and the reference's top-1 margin there.
    """

    matched: int
    tied: int
    first_divergence: str | None


def match_samples(reference: Sequence[Sample], other: Sequence[Sample], *, tie: float) -> Matches:
    """Compare greedy samples token by token.

    Args:
        reference: the trained model's samples, with margins.
        other: as many samples from the same prompts.
        tie: margin (nats) up to which the reference's choice is a tie. Where no log-probability may move by more than
            x, two tokens less than 2x apart may change places.
    """
    matched, tied, first = 0, 0, None
    for number, (mine, theirs) in enumerate(zip(reference, other, strict=True)):
        if mine.tokens == theirs.tokens:
            matched += 1
            continue
        at = _first_difference(mine.tokens, theirs.tokens)
        margin = mine.margins[at] if at < len(mine.margins) else None
        tied += margin is not None and margin <= tie
        if first is None:
            words = "none (the reference had stopped)" if margin is None else f"{margin:.3g}"
            first = f"sample {number}, token {at}, margin {words}"
    return Matches(matched=matched, tied=tied, first_divergence=first)


def surest_replaced(samples: Sequence[Sample]) -> list[Sample]:
    """Return the samples with one token replaced: the one that was chosen by the largest margin."""
    number, at = max(
        ((number, at) for number, sample in enumerate(samples) for at in range(len(sample.tokens))),
        key=lambda place: samples[place[0]].margins[place[1]],
    )
    tokens = list(samples[number].tokens)
    tokens[at] += 1
    return [replace(sample, tokens=tokens) if n == number else sample for n, sample in enumerate(samples)]


def _first_difference(a: list[int], b: list[int]) -> int:
    for at, (x, y) in enumerate(zip(a, b, strict=False)):
        if x != y:
            return at
    return min(len(a), len(b))
