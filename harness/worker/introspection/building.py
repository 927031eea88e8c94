"""The build of a family that no file describes: derived, written, and drawn again where an expert would be idle."""

from __future__ import annotations

import shutil
from dataclasses import replace

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.checkpoints.writer import write_checkpoint
from harness.worker.introspection.description import describe, write_description
from harness.worker.observation import Observation
from harness.worker.recipes.recipe import recipe
from harness.worker.request import Request

DRAWS = 24
"""How often the routers' weights are drawn at most."""
FEWEST = 5
"""Tokens that an expert is to see of each phase before anything is trained. Training moves some."""


def build_introspected(observation: Observation, request: Request, model_type: str) -> str:
    """Write the smallest checkpoint of a model type, and return its SHA-256 in hexadecimal.

    Routers' weights are drawn again until every expert sees tokens, or the best draw is kept. A router that reads what
    is nearly the same for all tokens leaves some experts idle, and what an idle expert has says nothing. It is the same
    draw in every run.

    Raises:
        UnsupportedError: this transformers has no such model.
        NotDerivedError: the rules do not lead to a small one.
        NoExpertsError: it has no routed experts.
    """
    checkpoint = describe(model_type)
    found: dict[int, int] = {}
    draw, digest = 0, ""
    for draw in range(DRAWS):
        digest = _write(checkpoint, request, draw)
        fewest = _fewest_tokens(checkpoint, request)
        found[draw] = FEWEST if fewest is None else fewest
        if found[draw] >= FEWEST:
            break
    if (best := max(found, key=lambda number: found[number])) != draw:
        digest = _write(checkpoint, request, best)
    refused = checkpoint.introspected.refused if checkpoint.introspected is not None else {}
    observation.data["not_possible"] = {f"lora-on-{name.lower()}": words for name, words in refused.items()}
    return digest


def _write(checkpoint: Checkpoint, request: Request, draw: int) -> str:
    """Write the checkpoint with its routers of a draw, and its description; return the SHA-256."""
    drawn = _with_routers_of(checkpoint, draw)
    if request.base.exists():
        shutil.rmtree(request.base)
    digest = write_checkpoint(drawn, request.base, seed=request.seed, dtype=request.dtype)
    write_description(drawn, request.work)
    return digest


def _with_routers_of(checkpoint: Checkpoint, draw: int) -> Checkpoint:
    specs = (replace(spec, draw=draw) if spec.kind == "router" else spec for spec in checkpoint.tensors)
    return replace(checkpoint, tensors=tuple(specs))


def _fewest_tokens(checkpoint: Checkpoint, request: Request) -> int | None:
    """Return the tokens of the expert that sees the fewest; None where the model cannot say anything.

    Then the stage that asks it first will show why.
    """
    import torch

    from harness.worker.stages.data import evaluation_prompts
    from harness.worker.stages.documents import training_documents
    from harness.worker.stages.experts_watch import watching
    from harness.worker.stages.load import load_model

    vocab = int(checkpoint.config.get("text_config", checkpoint.config)["vocab_size"])
    training = torch.tensor([one.tokens for one in training_documents(recipe("lora"), vocab, request.seed)])
    try:
        model = load_model(request.base, request)
        with watching(model, checkpoint) as watch, torch.no_grad():
            for phase, ids in (("training", training), ("evaluation", evaluation_prompts(vocab, request.seed))):
                with watch.counting(phase):
                    model(input_ids=ids.to(request.device), use_cache=False)
            return min(watch.fewest(phase)[0] for phase in ("training", "evaluation"))
    except Exception as error:  # noqa: BLE001 - whatever a library raises here it raises in the next stage, as a finding
        print(f"    the model was not asked which experts see tokens: {type(error).__name__}: {error}", flush=True)
        return None
