"""FP8 with a scale per block: ``weight`` (F8_E4M3) and ``weight_scale_inv``, as DeepSeek V3 and its kin are published.

weight = value * scale of its block; blocks are ``quantization_config.weight_block_size`` (128 x 128), the last of a row
or column may be cut short, and a single scale may stand for the whole tensor. Source: the release of DeepSeek V3, and
transformers ``integrations.finegrained_fp8.Fp8Dequantize`` (5.5.0), which multiplies in the scales' dtype as this does.
"""

from __future__ import annotations

from math import prod
from typing import TYPE_CHECKING

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.codecs import ReadBytes
from harness.merge.base.weight import QuantisedSource
from harness.merge.errors import InconsistentCheckpointError, UnsupportedBaseError

if TYPE_CHECKING:
    import torch

FORMATS = ("fp8_block",)
SUFFIX = "_scale_inv"
SCALES = {"F32": "float32", "BF16": "bfloat16", "F16": "float16"}
FLOAT8 = {"F8_E4M3": "float8_e4m3fn", "F8_E5M2": "float8_e5m2"}
SPARE = ("activation_scale", "input_scale")
"""Scales of activations, which a dequantised weight has no use for."""


def _block_size(base: Checkpoint, key: str) -> tuple[int, int]:
    declared = base.config.get("quantization_config")
    size = declared.get("weight_block_size") if isinstance(declared, dict) else None
    if not isinstance(size, list) or len(size) != 2 or not all(type(side) is int and side > 0 for side in size):  # noqa: PLR2004 - rows and columns
        raise UnsupportedBaseError(
            f"{key} has a scale per block, and config.json names no quantization_config.weight_block_size.",
            "The block size is not assumed; add it to config.json if you know it.",
        )
    return size[0], size[1]


def find(base: Checkpoint) -> dict[str, QuantisedSource]:
    """Return the FP8 weights by key; see the package."""
    found: dict[str, QuantisedSource] = {}
    for scale_key in base.shard_of:
        key = scale_key.removesuffix(SUFFIX)
        if key == scale_key:
            continue
        if key not in base:
            raise InconsistentCheckpointError(f"{scale_key} scales {key}, which the base does not hold.")
        weight, scales = base.info(key), base.info(scale_key)
        if weight.dtype not in FLOAT8 or scales.dtype not in SCALES or len(weight.shape) < 2:  # noqa: PLR2004 - a matrix
            raise UnsupportedBaseError(
                f"{key} is stored as {weight.dtype} {list(weight.shape)} with {scales.dtype} scales; FP8 matrices with"
                f" {', '.join(SCALES)} scales are decoded."
            )
        rows, columns = weight.shape[-2:]
        # A block larger than the matrix is the matrix: config.json may say anything.
        size = (rows, columns) if prod(scales.shape) == 1 else _block_size(base, key)
        block = (min(size[0], rows), min(size[1], columns))
        expected = (*weight.shape[:-2], -(-rows // block[0]), -(-columns // block[1]))
        if prod(scales.shape) != 1 and scales.shape != expected:
            raise InconsistentCheckpointError(
                f"{scale_key} has shape {list(scales.shape)}; {list(weight.shape)} in blocks of {list(block)} needs"
                f" {list(expected)}."
            )
        parts = {"weight": key, "scales": scale_key}
        module = key.removesuffix("weight")
        parts |= {name: f"{module}{name}" for name in SPARE if f"{module}{name}" in base}
        found[key] = QuantisedSource(
            codec="fp8_block",
            parts=parts,
            shape=weight.shape,
            options={
                "block_rows": block[0],
                "block_columns": block[1],
                "weight": weight.dtype,
                "scales": scales.dtype,
                "single": prod(scales.shape) == 1,
            },
        )
    return found


def rows(quantised: QuantisedSource, read: ReadBytes, first: int, last: int) -> torch.Tensor:
    """Return rows ``first:last`` in float32; see the package."""
    import torch  # noqa: PLC0415 - planning needs none

    height, width = quantised.shape[-2:]
    block_rows, block_columns = (int(str(quantised.options[name])) for name in ("block_rows", "block_columns"))
    scale_dtype = getattr(torch, SCALES[str(quantised.options["scales"])])
    data = read(quantised.parts["weight"], first * width, last * width)
    packed = torch.frombuffer(data, dtype=getattr(torch, FLOAT8[str(quantised.options["weight"])]))
    values = packed.to(scale_dtype).reshape(last - first, width)
    across, down = -(-width // block_columns), -(-height // block_rows)
    if quantised.options["single"]:
        scales = torch.frombuffer(read(quantised.parts["scales"], 0, scale_dtype.itemsize), dtype=scale_dtype)
        return (values * scales).float()
    # Row of scales that each row uses; a 3D tensor's matrices follow one another.
    row = torch.arange(first, last)
    scale_row = row // height * down + row % height // block_rows
    low, high = int(scale_row[0]), int(scale_row[-1]) + 1
    size = across * scale_dtype.itemsize
    table = torch.frombuffer(read(quantised.parts["scales"], low * size, high * size), dtype=scale_dtype)
    spread = table.reshape(high - low, across)[scale_row - low].repeat_interleave(block_columns, dim=1)[:, :width]
    return (values * spread).float()
