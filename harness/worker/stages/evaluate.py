"""What a model says: logits on held-out prompts, and greedy samples with their margins.

With them is recorded where its routing is a near tie.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from harness.worker.checkpoints.tokenizer import PAD
from harness.worker.request import Request
from harness.worker.stages.data import SAMPLE_NEW_TOKENS, SAMPLE_PROMPT_LENGTH, SAMPLES, evaluation_prompts
from harness.worker.stages.experts_watch import ExpertWatch

KEPT_EVERY, LOGPROB_DIGITS = 4, 7
REFERENCE = "reference"
"""The name of the view that a merge of fewer digits is held against."""


@dataclass(frozen=True, kw_only=True)
class Sample:
    """One greedy sample.

    Attributes:
        tokens: the new tokens.
        margins: log-probability of the token chosen minus that of the runner-up, per new token: nats.
    """

    tokens: list[int]
    margins: list[float]


def set_mode(model: Any) -> None:
    """Put a model into evaluation mode, or a quantised one into training mode.

    In evaluation mode bitsandbytes' 4-bit Linears compute in bfloat16 on some CPUs, whatever they were told. No model
    here has dropout, so nothing else differs.
    """
    model.train(bool(getattr(model, "is_quantized", False)))


def logits_of(model: Any, request: Request, vocab: int) -> Any:
    """Return logits on the held-out prompts: (PROMPTS, PROMPT_LENGTH, vocab) float32 on the CPU."""
    import torch

    set_mode(model)
    prompts = evaluation_prompts(vocab, request.seed).to(request.device)
    with torch.no_grad():
        return model(input_ids=prompts).logits.float().cpu()


def logprobs_of(logits: Any, clear: Any, request: Request, vocab: int) -> list[float | None]:
    """Return the log-probability of every fourth next token of the prompts, nats; None at positions that are not clear.

    Few enough to be kept in a result, where what other stacks say of the same base is held against them.

    Args:
        logits: (PROMPTS, PROMPT_LENGTH, vocab) float32.
        clear: (PROMPTS, PROMPT_LENGTH) bool.
        request: the cell.
        vocab: how many tokens the model knows.
    """
    prompts = evaluation_prompts(vocab, request.seed)
    said = logits.double().log_softmax(-1)[:, :-1].gather(-1, prompts[:, 1:, None])[..., 0]
    chosen = zip(said[:, ::KEPT_EVERY].flatten().tolist(), clear[:, :-1:KEPT_EVERY].flatten().tolist(), strict=True)
    return [round(value, LOGPROB_DIGITS) if is_clear else None for value, is_clear in chosen]


def samples_of(model: Any, request: Request, vocab: int) -> list[Sample]:
    """Return greedy samples from the first prompts' first tokens, with the model's own cache and stop tokens."""
    return generated(model, request, vocab)[0]


def generated(model: Any, request: Request, vocab: int, *, count: int = SAMPLES) -> tuple[list[Sample], list[Any]]:
    """Return greedy samples, and the logits that each was taken from: (new tokens, vocab) float32 on the CPU."""
    import torch

    set_mode(model)
    prompts = evaluation_prompts(vocab, request.seed)[:count, :SAMPLE_PROMPT_LENGTH].to(request.device)
    samples, logits = [], []
    for prompt in prompts:
        with torch.no_grad():
            output = model.generate(
                input_ids=prompt[None],
                attention_mask=torch.ones_like(prompt[None]),
                do_sample=False,
                max_new_tokens=SAMPLE_NEW_TOKENS,
                pad_token_id=PAD,
                return_dict_in_generate=True,
                output_logits=True,
            )
        said = torch.cat(output.logits).float().cpu()
        best = said.log_softmax(-1).topk(2, dim=-1)[0]
        logits.append(said)
        samples.append(
            Sample(
                tokens=output.sequences[0, SAMPLE_PROMPT_LENGTH:].tolist(),
                margins=[float(pair[0] - pair[1]) for pair in best],
            )
        )
    return samples, logits


def near_ties(watch: ExpertWatch, model: Any, request: Request, vocab: int) -> tuple[Any, Any]:
    """Return (logits, gap): logits as ``logits_of``, and the smallest router gap that a position depends on.

    A position attends to all before it, so its gap is the smallest over layers and over positions up to it:
    (PROMPTS, PROMPT_LENGTH) float32.
    """
    import torch

    with watch.counting("evaluation"), watch.recording():
        logits = logits_of(model, request, vocab)
    gaps = torch.stack([gap.view(logits.shape[:2]) for gap in watch.gaps.values()]).amin(0)
    return logits, gaps.cummin(dim=1)[0]


def save_view(directory: Path, name: str, tensors: dict[str, Any], samples: Sequence[Sample] | None = None) -> None:
    """Keep what a model said for the compare stage: ``<name>.safetensors`` and, where it generated, ``<name>.json``.

    A model that cannot generate still says something: its logits do not wait for samples (``save_samples``).
    """
    from safetensors.torch import save_file

    save_file({key: tensor.contiguous() for key, tensor in tensors.items()}, directory / f"{name}.safetensors")
    if samples is not None:
        save_samples(directory, name, samples)


def save_samples(directory: Path, name: str, samples: Sequence[Sample]) -> None:
    """Keep the samples of a model beside its view."""
    (directory / f"{name}.json").write_text(json.dumps([asdict(sample) for sample in samples]))


def has_view(directory: Path, name: str) -> bool:
    """Say whether a view of that name was kept."""
    return (directory / f"{name}.safetensors").exists()


def load_view(directory: Path, name: str) -> tuple[dict[str, Any], list[Sample] | None]:
    """Read what ``save_view`` and ``save_samples`` kept; the samples are None where the model did not generate."""
    from safetensors.torch import load_file

    file = directory / f"{name}.json"
    samples = [Sample(**entry) for entry in json.loads(file.read_text())] if file.exists() else None
    return load_file(directory / f"{name}.safetensors"), samples
