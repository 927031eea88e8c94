"""Autograd's gradient of every LoRA tensor against the slope of the loss by the architecture's definition, in float64.

Along a direction v the loss rises by the gradient's product with v. The definition has no autograd: its slope is a
central difference. All tensors are moved at once, each along its own gradient with a sign of its own, so that a wrong
gradient of any one of them shows in the sum. Only if the sum is wrong are they looked at by layer and one by one in the
worst layer, for the name.
"""

from __future__ import annotations

import math
import re
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from typing import Any

from harness.definitions import is_defined
from harness.worker.checkpoints.random_bits import random_integers
from harness.worker.observation import Judgement, Observation
from harness.worker.request import Request
from harness.worker.stages.attach import MAGNITUDE
from harness.worker.stages.data import evaluation_prompts
from harness.worker.stages.definition import trained_on
from harness.worker.stages.forward_paths import look
from harness.worker.stages.whole import saved_copy

STEP = 1e-7
"""How far tensors are moved, as a share of their size: no router changes its mind at a clear position."""
DIRECTIONS = 2
OF_PATHS = 0.1
"""The band, of the sum of all slopes, as a share of ``paths_max``: what gradients in float32 may lose, each tensor's
alone. They lose it in different directions. Measured at most 7e-7 over families, stacks and codes with few layers."""


def check_derivative(observation: Observation, peft_model: Any, request: Request, *, clear: Any, vocab: int) -> None:
    """Record the largest deviation over some directions, as a share of what all tensors' slopes add up to.

    Args:
        observation: where the check goes.
        peft_model: the trained model, its LoRA in float32 and saved.
        request: the cell.
        clear: (prompts, tokens) bool, the positions whose predictions count.
        vocab: how many tokens the model knows.
    """
    if not is_defined(request.family):
        return
    from harness.definitions.said import loss_of_adapter

    prompts = evaluation_prompts(vocab, request.seed)
    seen = look(peft_model, prompts.to(request.device), clear.to(request.device))
    gradients = {_saved(name): value.double().cpu().numpy() for name, value in seen.gradients.items()}
    band = OF_PATHS * request.bands.paths_max
    loss, tensors = loss_of_adapter(
        request.family, trained_on(request), request.adapter, prompts.numpy(), clear[:, :-1].numpy()
    )
    if unlike := _unlike(gradients, tensors):
        lost = Judgement(
            value=math.inf, band=f"<= {band:g}", passed=False, detail=f"not saved as trained: {unlike[:4]}"
        )
        observation.judge("derivative", "save", lost, control=lost)
        return
    moves = {name: _move(tensors[name], gradient) for name, gradient in gradients.items()}
    slopes = {name: float((gradients[name] * move).sum()) for name, move in moves.items()}
    whole = sum(slopes.values())

    def rise(signs: Mapping[str, int]) -> float:
        ahead, behind = (
            loss({name: tensors[name] + side * STEP * signs.get(name, 0) * moves[name] for name in tensors})
            for side in (1, -1)
        )
        return (ahead - behind) / (2 * STEP)

    def deviation(rise: float, signs: Mapping[str, int], slopes: Mapping[str, float]) -> float:
        told = sum(sign * slopes[name] for name, sign in signs.items())
        found = abs(rise - told) / whole if whole else math.inf
        return found if math.isfinite(found) else math.inf  # max would pass over what is no number

    directions = [_signs(list(moves), request.seed, number) for number in range(DIRECTIONS)]
    rises = [rise(signs) for signs in directions]

    def judged(slopes: Mapping[str, float]) -> Judgement:
        worst = max(deviation(*found, slopes) for found in zip(rises, directions, strict=True))
        return Judgement(value=worst, band=f"<= {band:g}", passed=worst <= band)

    judgement = judged(slopes)
    if not judgement.passed:

        def alone(names: Sequence[str]) -> float:
            signs = dict.fromkeys(names, 1)
            return deviation(rise(signs), signs, slopes)

        # Layer by layer first: a question takes a forward of the whole definition, and there are a thousand tensors.
        worst = max(_by_layer(moves), key=alone)
        name = max(worst, key=lambda name: alone([name]))
        detail = f"autograd's gradient is not the loss's slope, most of all for {name}"
        judgement = replace(judgement, detail=detail)
    steepest = max(slopes, key=lambda name: slopes[name])
    control = judged({**slopes, steepest: -slopes[steepest]})
    observation.judge("derivative", "save", judgement, control=control)


def _by_layer(names: Iterable[str]) -> list[list[str]]:
    """Return the names of each layer, and of what lies in none, together."""
    found: dict[str, list[str]] = {}
    for name in names:
        layer = re.search(r"\.layers\.\d+\.", name)
        found.setdefault(layer[0] if layer else "", []).append(name)
    return list(found.values())


def _unlike(trained: Mapping[str, Any], saved: Mapping[str, Any]) -> list[str]:
    """Return the tensors that are in one of the two alone, or there in another shape."""
    return sorted(
        name
        for name in trained.keys() | saved.keys()
        if name not in trained or name not in saved or trained[name].shape != saved[name].shape
    )


def _saved(name: str) -> str:
    """Return the name under which PEFT saves a tensor of the model.

    DoRA's magnitudes have no ``.weight`` there, and the factors of an embedding have none in memory either.
    """
    return saved_copy(name).removesuffix(".default").replace(".default.weight", "" if MAGNITUDE in name else ".weight")


def _move(tensor: Any, gradient: Any) -> Any:
    """Return the way that a tensor is moved: along its gradient, as long as the tensor itself."""
    size, steepness = float((tensor**2).sum() ** 0.5), float((gradient**2).sum() ** 0.5)
    return gradient * (size / steepness) if steepness else gradient


def _signs(names: list[str], seed: int, number: int) -> dict[str, int]:
    bits = random_integers(seed, f"derivative/{number}", len(names))
    return {name: 1 if bit % 2 else -1 for name, bit in zip(names, bits.tolist(), strict=True)}
