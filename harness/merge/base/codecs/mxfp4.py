"""MXFP4 as gpt_oss is published: ``…_blocks`` (num_experts, out, groups, 16), ``…_scales`` (num_experts, out, groups).

Both are U8. A byte holds two E2M1 values, the low nibble first. 32 of them share the power of two ``scale - 127``. The
decoded parameter is (num_experts, in, out), the other way round than the blocks: transformers
``integrations.mxfp4.convert_moe_packed_tensors`` (5.5.0). Every value is exact in bfloat16.
"""

from __future__ import annotations

from typing import TYPE_CHECKING

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.codecs import ReadBytes
from harness.merge.base.weight import QuantisedSource
from harness.merge.errors import InconsistentCheckpointError, UnsupportedBaseError

if TYPE_CHECKING:
    import torch

FORMATS = ("mxfp4",)
VALUES = (0.0, 0.5, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0, -0.0, -0.5, -1.0, -1.5, -2.0, -3.0, -4.0, -6.0)
"""What the sixteen codes mean: sign, two bits of exponent, one of mantissa (OCP Microscaling Formats 1.0, E2M1)."""
GROUP_BYTES = 16
BIAS = 127


def find(base: Checkpoint) -> dict[str, QuantisedSource]:
    """Return the MXFP4 parameters by key; see the package."""
    found: dict[str, QuantisedSource] = {}
    for blocks_key in base.shard_of:
        key = blocks_key.removesuffix("_blocks")
        if key == blocks_key or base.info(blocks_key).dtype != "U8":
            continue
        scales_key = f"{key}_scales"
        if scales_key not in base:
            raise InconsistentCheckpointError(f"{blocks_key} has no {scales_key}.")
        blocks, scales = base.info(blocks_key), base.info(scales_key)
        if (
            len(blocks.shape) != 4  # noqa: PLR2004 - as above
            or blocks.shape[3] != GROUP_BYTES
            or scales.dtype != "U8"
            or scales.shape != blocks.shape[:3]
        ):
            raise InconsistentCheckpointError(
                f"{blocks_key} {list(blocks.shape)} and {scales_key} {list(scales.shape)} ({scales.dtype}) are not"
                " MXFP4 blocks of 32."
            )
        if base.text_config.get("model_type") != "gpt_oss":
            raise UnsupportedBaseError(
                f"{blocks_key} is MXFP4, and only gpt_oss is known to store it so;"
                f" this model is {str(base.text_config.get('model_type'))[:40]!r}."
            )
        count, out, groups, _ = blocks.shape
        found[key] = QuantisedSource(
            codec="mxfp4",
            parts={"blocks": blocks_key, "scales": scales_key},
            shape=(count, groups * 2 * GROUP_BYTES, out),
        )
    return found


def rows(quantised: QuantisedSource, read: ReadBytes, first: int, last: int) -> torch.Tensor:
    """Return rows ``first:last`` in float32; see the package.

    A row is one input feature of one expert over all outputs, so the expert's blocks are read whole and a few groups of
    them decoded.
    """
    import torch  # noqa: PLC0415 - planning needs none

    _, height, out = quantised.shape
    groups = height // (2 * GROUP_BYTES)
    table = torch.tensor(VALUES)
    pieces: list[torch.Tensor] = []
    position = first
    while position < last:
        expert, start = divmod(position, height)
        stop = min(start + last - position, height)
        low, high = start // (2 * GROUP_BYTES), -(-stop // (2 * GROUP_BYTES))
        size = out * groups
        packed = read(quantised.parts["blocks"], expert * size * GROUP_BYTES, (expert + 1) * size * GROUP_BYTES)
        blocks = torch.frombuffer(packed, dtype=torch.uint8).reshape(out, groups, GROUP_BYTES)[:, low:high].long()
        exponents = torch.frombuffer(
            read(quantised.parts["scales"], expert * size, (expert + 1) * size), dtype=torch.uint8
        )
        power = exponents.reshape(out, groups)[:, low:high].int() - BIAS
        values = table[torch.stack((blocks & 0xF, blocks >> 4), dim=-1)].reshape(out, high - low, 2 * GROUP_BYTES)
        decoded = torch.ldexp(values, power.unsqueeze(-1)).reshape(out, -1)
        offset = low * 2 * GROUP_BYTES
        pieces.append(decoded[:, start - offset : stop - offset].T)
        position += stop - start
    return torch.cat(pieces)
