"""Quantised weights against the original's, by the definition of their code (``harness.definitions.coding``).

The codes' meaning and the original's blocks are all that is used: no kernel packs or decodes here.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Judgement, Observation
from harness.worker.recipes.quantization import Quantization
from harness.worker.request import Request
from harness.worker.stages.consistency import worst_of
from harness.worker.stages.quantized import DEQUANTIZED

LARGER = 1.1
"""How much larger the decoded values of a control are, as ``harness.contract.checks`` says."""


NEVER_QUANTISED = ("router", "embedding", "head", "other")
"""Kinds that bitsandbytes is told to leave alone, though a LoRA can have them."""


def check_coding(
    observation: Observation, request: Request, checkpoint: Checkpoint, quantization: Quantization, schemes: set[str]
) -> None:
    """Record which tensors of the base are quantised, how, and how far the worst weight is off, as a share of its room.

    Args:
        observation: where the checks go.
        request: the cell, whose base and dequantised base are on disk.
        checkpoint: what the base is.
        quantization: what was asked for.
        schemes: the codes that the model's quantised weights say they are in.
    """
    from harness.definitions.coding import share_of_room

    stored, meant = (_read(request, name) for name in (request.base.name, DEQUANTIZED))
    asked = {spec.key for spec in checkpoint.tensors if spec.module is not None and spec.kind not in NEVER_QUANTISED}
    found = {key for key, values in stored.items() if (values != meant[key]).any()}
    scheme = f"{quantization.code}, double quantised" if quantization.double_quant else quantization.code

    def census(found: set[str]) -> Judgement:
        missing, surplus = sorted(asked - found), sorted(found - asked)
        return Judgement(
            value=f"{len(found & asked)}/{len(asked)}",
            band=f"== {len(asked)}/{len(asked)} tensors of Linears and experts, in {scheme}",
            passed=found == asked and schemes == {scheme},
            detail=f"not quantised: {missing[:4]}; not asked for: {surplus[:4]}; codes: {sorted(schemes)}",
        )

    first = min(asked)
    observation.judge("census", "load", census(found), control=census(found - {first}))
    shares = {key: share_of_room(stored[key], meant[key], quantization.code) for key in sorted(found)}
    altered = share_of_room(stored[first], LARGER * meant[first], quantization.code)
    observation.judge("coding", "load", _coding(shares), control=_coding({**shares, first: altered}))


def _coding(shares: Mapping[str, float]) -> Judgement:
    worst = worst_of(shares) if shares else "nothing"
    return Judgement(
        value=shares.get(worst),
        band="<= 1, a share of what coding may cost",
        passed=bool(shares) and shares[worst] <= 1,
        detail=f"weights of {worst} are further from the original than the nearest code",
    )


def _read(request: Request, name: str) -> dict[str, Any]:
    from harness.definitions.files import read_tensors

    found: dict[str, Any] = {}
    for path in sorted((request.work / name).glob("*.safetensors")):
        found |= read_tensors(path)
    return found
