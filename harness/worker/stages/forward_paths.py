"""The trained model through every experts forward that the stack has: what they say and every LoRA gradient must agree.

A forward that reads the experts' weights past the LoRA is faster and wrong. Nothing else in a training run says so.
Paths are compared at positions clear of router ties, where rounding cannot flip an expert.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

from harness.experts import enable_grouped_forward
from harness.worker.observation import Judgement, Observation
from harness.worker.request import Request
from harness.worker.stages.data import evaluation_prompts
from harness.worker.stages.evaluate import set_mode
from harness.worker.stages.whole import is_trained

REFERENCE_PATH = "eager"
PATHS = ("batched_mm", "grouped_mm")
"""transformers' other forwards (``ALL_EXPERTS_FUNCTIONS``, 5.0 to 5.23) that need nothing installed."""
OURS = "grouped_forward"
"""``harness.experts.enable_grouped_forward``, enabled for this comparison alone."""

LARGER = 1.001
"""How much larger a gradient of a control is, as ``harness.contract.checks`` says."""


@dataclass(frozen=True, kw_only=True)
class Seen:
    """What one path gave: (positions, vocab) logits, and the gradient of every LoRA tensor by name."""

    logits: Any
    gradients: dict[str, Any]


def look(peft_model: Any, prompts: Any, clear: Any) -> Seen:
    """Run forward and backward once: the loss is the next-token cross entropy at clear positions."""
    import torch

    set_mode(peft_model)
    peft_model.zero_grad(set_to_none=True)
    with torch.enable_grad():
        logits = peft_model(input_ids=prompts).logits.float()
        kept = clear[:, :-1]
        torch.nn.functional.cross_entropy(logits[:, :-1][kept], prompts[:, 1:][kept]).backward()
    gradients = {
        name: torch.zeros_like(p) if p.grad is None else p.grad.detach().clone()
        for name, p in peft_model.named_parameters()
        if is_trained(name) and p.requires_grad
    }
    peft_model.zero_grad(set_to_none=True)
    return Seen(logits=logits.detach()[clear], gradients=gradients)


def compare_paths(reference: Seen, other: Seen) -> dict[str, float]:
    """Return the largest difference of logits, and that of a gradient.

    The first is relative to the spread of logits, the second to the gradient's norm.
    """
    if not reference.logits.numel():  # no position is clear, as when logits are NaN
        return {"logits": math.inf, "gradients": math.inf}
    logits = share(float((other.logits - reference.logits).abs().max()), float(reference.logits.std()))
    gradients = [
        share(float((other.gradients[name] - wanted).norm()), float(wanted.norm()))
        for name, wanted in reference.gradients.items()
    ]
    return {"logits": logits, "gradients": max(gradients)}


def share(difference: float, whole: float) -> float:
    """Return a difference relative to something; infinite where either is no number, which ``max`` would pass over."""
    if not math.isfinite(difference) or not math.isfinite(whole):
        return math.inf
    return 0.0 if difference == 0 else difference / whole if whole else math.inf


@contextmanager
def lora_in_float32(peft_model: Any) -> Iterator[None]:
    """Compute with float32 copies of the LoRA's weights within the block.

    Paths are compared, not the bf16 that TRL 1.x trains quantised models in.
    """
    tensors = [(p, p.data) for name, p in peft_model.named_parameters() if ".lora_" in name]
    for parameter, values in tensors:
        parameter.data = values.float()
    try:
        yield
    finally:
        for parameter, values in tensors:
            parameter.data = values


class PathFailedError(RuntimeError):
    """A forward raised that the stack offers. The cause is what it raised."""


@dataclass(kw_only=True)
class Tried:
    """What came of the forwards.

    Attributes:
        found: path → how far it is from ``eager``.
        not_possible: path → why the release, or the model, has no such forward.
        ignored: paths that were chosen and not taken.
        failed: path → what it raised.
    """

    found: dict[str, dict[str, float]] = field(default_factory=dict)
    not_possible: dict[str, str] = field(default_factory=dict)
    ignored: list[str] = field(default_factory=list)
    failed: dict[str, Exception] = field(default_factory=dict)


def check_forward_paths(
    observation: Observation, peft_model: Any, request: Request, *, gaps: Any, vocab: int, on_experts: bool
) -> None:
    """Hold every path against ``eager`` and record one check, which names the path that is furthest off.

    transformers 4 has one way through its experts, which are Linears. Ours is held against that. No hook may be left on
    the experts: the grouped forward does not call them. Without a LoRA ``on_experts`` it leaves them to the library,
    and is not looked at.

    A forward that a release does not offer, and ours where it does not know the release's experts, is recorded as not
    possible and is nobody's failure.

    Raises:
        PathFailedError: a forward that is offered raised. The others have been tried all the same.
    """
    prompts = evaluation_prompts(vocab, request.seed).to(request.device)
    clear = (gaps >= request.bands.near_tie_epsilon).to(request.device)
    usual = _usual_path(peft_model)
    with lora_in_float32(peft_model), _path_set(peft_model, REFERENCE_PATH) as choosable:
        reference = look(peft_model, prompts, clear)
        tried = _try_all(peft_model, reference, prompts, clear, choosable=choosable, on_experts=on_experts)
    observation.data["forward_paths"] = tried.found
    observation.data["not_possible"] = {**observation.data.get("not_possible", {}), **tried.not_possible}
    for path, reason in tried.not_possible.items():
        print(f"    {path} is not possible: {reason}", flush=True)
    if tried.found:
        _judge(observation, request, reference, tried)
    for path, error in tried.failed.items():
        taken = "is what this stack takes by itself" if path == usual else "is taken only where it is asked for"
        others = f"; {', '.join(tried.found)} ran" if tried.found else ""
        raise PathFailedError(f"the experts forward {path}, which {taken}, raised{others}") from error


def _try_all(peft_model: Any, reference: Seen, prompts: Any, clear: Any, *, choosable: bool, on_experts: bool) -> Tried:
    """Try transformers' paths where one can be chosen, and ours where experts have a LoRA."""
    tried = Tried()

    def attempt(path: str) -> None:
        try:
            tried.found[path] = compare_paths(reference, look(peft_model, prompts, clear))
        except Exception as error:  # noqa: BLE001 - what a library raises is the observation; the next path is tried
            tried.failed[path] = error

    for path in PATHS if choosable else ():
        if (lacking := _lacking(peft_model, path)) is not None:
            tried.not_possible[path] = lacking
            continue
        with _path_set(peft_model, path), _counted(path) as calls:
            attempt(path)
        if not calls and path not in tried.failed:
            tried.ignored.append(path)
    if on_experts:
        with enable_grouped_forward(peft_model) as grouped:
            attempt(OURS)
            # What ran, not what would: a call can be refused for its arguments.
            refused = [block for block in grouped.blocks if not block.grouped_calls or block.library_calls]
            taken = any(block.grouped_calls for block in grouped.blocks)
        if refused and OURS not in tried.failed:
            tried.not_possible[OURS] = f"{refused[0].name}: {refused[0].reason}"
            if not taken:
                del tried.found[OURS]  # it is the library's own
    return tried


def _judge(observation: Observation, request: Request, reference: Seen, tried: Tried) -> None:
    band = request.bands.paths_max

    def judged(found: dict[str, dict[str, float]]) -> Judgement:
        worst = max(found, key=lambda path: max(found[path].values()))
        what = max(found[worst], key=lambda name: found[worst][name])
        value = found[worst][what]
        off = [f"{worst} differs from {REFERENCE_PATH} in its {what}"] if not value <= band else []
        off += [f"{path} was chosen and not taken" for path in tried.ignored]
        return Judgement(
            value=value,
            band=f"<= {band:g}, on all of {', '.join(found)}",
            passed=not off,
            detail="; ".join(off),
        )

    altered = _with_larger_gradient(reference)
    altered_by = compare_paths(reference, altered) if altered is not None else {"gradients": math.inf}
    control = judged({REFERENCE_PATH: altered_by})
    observation.judge("forward_paths", "forward-paths", judged(tried.found), control=control)


def _usual_path(peft_model: Any) -> str | None:
    """Return the experts forward that the stack takes by itself; None where there is one only."""
    return getattr(peft_model.get_base_model().config.get_text_config(), "_experts_implementation", None)


def _lacking(peft_model: Any, path: str) -> str | None:
    """Say in the library's words, or for want of an entry in its table, why a path is not offered; None where it is."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    if path not in ALL_EXPERTS_FUNCTIONS:
        return "this release of transformers does not offer it"
    try:
        with _path_set(peft_model, path):
            return None
    except (ImportError, ValueError) as error:  # what it says of a path that it, or this torch, cannot take
        return f"{type(error).__name__}: {error}"


def _with_larger_gradient(seen: Seen) -> Seen | None:
    """Return what a path would have given that scales the gradient of one tensor; None where there is no gradient."""
    name = next((name for name, value in seen.gradients.items() if value.any()), None)
    if name is None:
        return None
    return Seen(logits=seen.logits, gradients={**seen.gradients, name: LARGER * seen.gradients[name]})


@contextmanager
def _counted(path: str) -> Iterator[list[str]]:
    """Count the calls of one of transformers' experts forwards within the block: one entry each."""
    from transformers.integrations.moe import ALL_EXPERTS_FUNCTIONS

    calls: list[str] = []
    forward = ALL_EXPERTS_FUNCTIONS[path]

    def counted(*args: Any, **kwargs: Any) -> Any:
        calls.append(path)
        return forward(*args, **kwargs)

    ALL_EXPERTS_FUNCTIONS[path] = counted
    try:
        yield calls
    finally:
        ALL_EXPERTS_FUNCTIONS[path] = forward


@contextmanager
def _path_set(peft_model: Any, path: str) -> Iterator[bool]:
    """Choose transformers' experts forward within the block; yields whether it can be chosen."""
    model = peft_model.get_base_model()
    if not hasattr(model, "set_experts_implementation"):
        yield False
        return
    before = model.config.get_text_config()._experts_implementation  # noqa: SLF001 - there is no public way to ask
    model.set_experts_implementation(path)
    try:
        yield True
    finally:
        model.set_experts_implementation(before)
