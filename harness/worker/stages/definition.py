"""What a model says, held against what its files mean by its architecture's definition (``harness.definitions``).

Everything else here compares models that the same libraries made, so what they all do wrong shows nowhere else.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.contract.stages import StageName
from harness.definitions import is_defined
from harness.definitions.said import logits_of_files
from harness.worker.observation import Observation
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Request
from harness.worker.stages.data import evaluation_prompts
from harness.worker.stages.functional import judge_logprobs
from harness.worker.stages.quantized import DEQUANTIZED
from harness.worker.stages.vocabulary import RESIZED

KEPT = "definition.safetensors"


def trained_on(request: Request) -> Path:
    """Return the checkpoint that training really saw: the base, what its codes mean, or it with more tokens."""
    plan = recipe(request.recipe)
    if plan.new_tokens:
        return request.work / RESIZED
    return request.base if plan.quantization is None else request.work / DEQUANTIZED


def meant(request: Request, vocab: int, name: str) -> Any:
    """Return what files mean, (prompts, tokens, vocabulary) float64. Once computed it is kept in the work directory.

    Args:
        request: the cell.
        vocab: how many tokens the model knows.
        name: ``base``: what is trained on. ``adapted``: that with the saved adapter. ``merged``: a right merge, which
            is the original base with the adapter, each changed weight rounded once to the checkpoint's dtype.
    """
    import torch
    from safetensors.torch import load_file, save_file

    path = request.work / KEPT
    kept = load_file(path) if path.exists() else {}
    if name not in kept:
        logits = logits_of_files(
            request.family,
            request.base if name == "merged" else trained_on(request),
            evaluation_prompts(vocab, request.seed).numpy(),
            adapter=None if name == "base" else request.adapter,
            rounded_to=request.dtype if name == "merged" else None,
        )
        kept[name] = torch.from_numpy(logits)
        save_file(kept, path)
    return kept[name]


def check_definition(
    observation: Observation, stage: StageName, request: Request, *, name: str, logits: Any, clear: Any
) -> None:
    """Record the largest difference of a log-probability, at positions that are clear of router ties.

    Args:
        observation: where the check goes.
        stage: whose model it is.
        request: the cell.
        name: what it should say; see ``meant``.
        logits: what it says, (prompts, tokens, vocabulary) float32.
        clear: (prompts, tokens) bool.
    """
    if not is_defined(request.family):
        return
    bands = request.bands
    band = bands.logprob_max if name == "merged" else bands.definition_max
    judgement, control = judge_logprobs(
        meant(request, logits.shape[-1], name),
        logits,
        clear,
        band=band,
        detail="the model does not say what its files mean by the architecture's definition",
    )
    observation.judge("definition", stage, judgement, control=control)
