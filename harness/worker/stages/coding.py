"""Quantised weights against the original's, by the definition of their code (``harness.definitions.coding``).

The codes' meaning and the original's blocks are all that is used: no kernel packs or decodes here.
"""

from __future__ import annotations

from typing import Any

from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.recipes.quantization import Quantization
from harness.worker.request import Request
from harness.worker.stages.quantized import DEQUANTIZED


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
    asked = {spec.key for spec in checkpoint.tensors if spec.module is not None and not spec.extra}
    found = {key for key, values in stored.items() if (values != meant[key]).any()}
    scheme = f"{quantization.code}, double quantised" if quantization.double_quant else quantization.code
    missing, surplus = sorted(asked - found), sorted(found - asked)
    observation.check(
        "census",
        "load",
        f"{len(found & asked)}/{len(asked)}",
        f"== {len(asked)}/{len(asked)} tensors of Linears and experts, in {scheme}",
        passed=found == asked and schemes == {scheme},
        detail=f"not quantised: {missing[:4]}; not asked for: {surplus[:4]}; codes: {sorted(schemes)}",
    )
    shares = {key: share_of_room(stored[key], meant[key], quantization.code) for key in sorted(found)}
    worst = max(shares, key=lambda key: shares[key], default="nothing")
    observation.check(
        "coding",
        "load",
        shares.get(worst),
        "<= 1, a share of what coding may cost",
        passed=bool(shares) and shares[worst] <= 1,
        detail=f"weights of {worst} are further from the original than the nearest code",
    )


def _read(request: Request, name: str) -> dict[str, Any]:
    from harness.definitions.files import read_tensors

    found: dict[str, Any] = {}
    for path in sorted((request.work / name).glob("*.safetensors")):
        found |= read_tensors(path)
    return found
