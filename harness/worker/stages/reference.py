"""What a right merge says where the trained model cannot: the base with PEFT's deltas, rounded once, in memory.

It is made without any merge engine. Parameters of the loaded base are replaced one by one by round(base + delta). The
delta is PEFT's own in float64 (``stages.deltas``). transformers decides which parameter is which, so nothing here knows
of files.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

from harness.engines.engine import TORCH_DTYPE
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Request
from harness.worker.stages.deltas import DELTAS
from harness.worker.stages.evaluate import REFERENCE, near_ties, samples_of, save_samples, save_view
from harness.worker.stages.experts_watch import watch_experts
from harness.worker.stages.load import load_model
from harness.worker.stages.vocabulary import Vocabulary


def save_reference(
    request: Request, checkpoint: Checkpoint, vocab: int, *, base: Path | None = None, name: str = REFERENCE
) -> None:
    """Keep the view of the rightly rounded model, with its own router gaps.

    Args:
        request: the cell.
        checkpoint: what the base is.
        vocab: how many tokens it knows.
        base: another base that the deltas go onto.
        name: what the view is kept as.
    """
    model = rightly_rounded(request, checkpoint, base or request.base)
    logits, gaps = near_ties(watch_experts(model, checkpoint), model, request, vocab)
    save_view(request.work, name, {"logits": logits, "gaps": gaps})


def save_reference_samples(request: Request, checkpoint: Checkpoint, vocab: int) -> None:
    """Keep what the rightly rounded model generates, beside the view that ``save_reference`` makes of it."""
    save_samples(
        request.work, REFERENCE, samples_of(rightly_rounded(request, checkpoint, request.base), request, vocab)
    )


def rightly_rounded(request: Request, checkpoint: Checkpoint, base: Path) -> Any:
    """Return the base with PEFT's deltas added in float64 and rounded once to the cell's dtype, in memory."""
    import torch
    from safetensors.torch import load_file

    model = load_model(base, request)
    dtype = getattr(torch, TORCH_DTYPE[request.dtype])
    deltas = load_file(request.work / DELTAS)
    Vocabulary.of(checkpoint, deltas).prepare(model)
    with torch.no_grad():
        for target, delta in deltas.items():
            path, _, parameter = target.partition(":")
            weight = getattr(model.get_submodule(path), parameter or "weight")
            exact = weight.double() + delta.to(weight.device)
            weight.copy_(exact.to(dtype).to(weight.dtype))
    return model


def judged_by_reference(request: Request) -> bool:
    """Say whether a right merge of the cell cannot say what the trained model said, so that it has a reference."""
    return request.dtype != "float32" or recipe(request.recipe).quantization is not None
