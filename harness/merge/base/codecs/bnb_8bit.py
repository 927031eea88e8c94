"""bitsandbytes 8-bit (LLM.int8): ``weight`` (I8) and ``SCB``, the largest absolute value of each row.

weight = value * SCB / 127: ``bitsandbytes::int8_vectorwise_dequant`` (0.45 to 0.50), in float32. ``weight_format`` says
how the values are arranged; only 0, row by row, which every current version writes, is decoded.
"""

from __future__ import annotations

import os
from typing import TYPE_CHECKING

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.codecs import ReadBytes
from harness.merge.base.weight import QuantisedSource
from harness.merge.errors import InconsistentCheckpointError, UnsupportedBaseError
from harness.merge.files.safetensors_file import read_range

if TYPE_CHECKING:
    import torch

FORMATS = ("int8",)
RECIPROCAL = 7.874015718698502e-3
"""1 / 127, as bitsandbytes writes it."""


def _row_by_row(base: Checkpoint, key: str) -> bool:
    info, shard = base.info(key), base.shards[base.shard_of[key]]
    if info.nbytes != 1:
        return False
    descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        return read_range(descriptor, info.start, info.stop, what=shard.name) == b"\0"
    finally:
        os.close(descriptor)


def find(base: Checkpoint) -> dict[str, QuantisedSource]:
    """Return the 8-bit weights by key; see the package."""
    found: dict[str, QuantisedSource] = {}
    for scale_key in base.shard_of:
        if not scale_key.endswith(".SCB"):
            continue
        module = scale_key.removesuffix(".SCB")
        key, form = f"{module}.weight", f"{module}.weight_format"
        if key not in base:
            raise InconsistentCheckpointError(f"{scale_key} scales {key}, which the base does not hold.")
        weight, scales = base.info(key), base.info(scale_key)
        if weight.dtype != "I8" or len(weight.shape) != 2 or scales.dtype != "F32" or scales.shape != weight.shape[:1]:  # noqa: PLR2004 - a matrix
            raise InconsistentCheckpointError(
                f"{key} ({weight.dtype} {list(weight.shape)}) and {scale_key} ({scales.dtype} {list(scales.shape)})"
                " are no 8-bit Linear."
            )
        parts = {"weight": key, "SCB": scale_key}
        if form in base:
            if not _row_by_row(base, form):
                raise UnsupportedBaseError(
                    f"{form} names an arrangement of {key} that is not decoded; 0, row by row, is."
                )
            parts["format"] = form
        found[key] = QuantisedSource(codec="bnb_8bit", parts=parts, shape=weight.shape, options={"codes": FORMATS[0]})
    return found


def rows(quantised: QuantisedSource, read: ReadBytes, first: int, last: int) -> torch.Tensor:
    """Return rows ``first:last`` in float32; see the package."""
    import torch  # noqa: PLC0415 - planning needs none

    width = quantised.shape[-1]
    values = torch.frombuffer(read(quantised.parts["weight"], first * width, last * width), dtype=torch.int8)
    scales = torch.frombuffer(read(quantised.parts["SCB"], first * 4, last * 4), dtype=torch.float32)
    return values.reshape(last - first, width) * scales.unsqueeze(1) * RECIPROCAL
