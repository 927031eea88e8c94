"""Quantised weights against the original's, by the definition of their code.

The codes' meaning and the original's blocks are all that is used: no kernel packs or decodes here. A weight must lie as
near to the original as the nearest code does, but for what rounding the block's scale costs.
"""

from __future__ import annotations

from typing import Any

import numpy as np

from harness.definitions.files import read_tensors
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.observation import Observation
from harness.worker.recipes.quantization import Quantization
from harness.worker.request import Request
from harness.worker.stages.quantized import DEQUANTIZED

BLOCK = 64
NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
"""QLoRA (arXiv 2305.14314), appendix E."""
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0.0, 0.0625, 2, 3, 4, 6, 8, 12))
"""``bitsandbytes``' 4-bit float: two bits of exponent and one of mantissa, the smallest subnormal."""
VALUES = {"nf4": NF4, "fp4": FP4}
ROOM = 0.02
"""Of a block's largest weight: what quantising its scale to 8 bits may cost. Measured at most 0.0053."""
STEPS = 127
ROOM_OF_INT8 = 1.25
"""Half steps of a row's scale. Measured at most 1.09: a row is rounded to float16 before it is coded."""


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
    stored, meant = (_read(request, name) for name in (request.base.name, DEQUANTIZED))
    asked = {spec.key for spec in checkpoint.tensors if spec.module is not None and not spec.extra}
    found = {key for key, values in stored.items() if not np.array_equal(values, meant[key])}
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
    shares = {key: _share(stored[key], meant[key], quantization) for key in sorted(found)}
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
    found: dict[str, Any] = {}
    for path in sorted((request.work / name).glob("*.safetensors")):
        found |= read_tensors(path)
    return found


def _share(original: Any, coded: Any, quantization: Quantization) -> float:
    """Return how far the worst weight is off, as a share of what it may be."""
    if quantization.code == "int8":
        largest = np.abs(original).max(axis=-1, keepdims=True)
        return float((np.abs(coded - original) / (largest / STEPS / 2)).max() / ROOM_OF_INT8)
    blocks = original.reshape(-1, BLOCK)
    largest = np.abs(blocks).max(axis=-1, keepdims=True)
    nearest = np.abs((blocks / largest)[..., None] - np.array(VALUES[quantization.code])).min(axis=-1)
    return float(((np.abs(coded.reshape(-1, BLOCK) - blocks) / largest - nearest) / ROOM).max())
