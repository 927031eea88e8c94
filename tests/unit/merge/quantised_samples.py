"""Quantised weights packed from random codes, so that every code, scale and edge occurs, with their float64 values.

Nothing is quantised and nothing of the engine is used but the two published tables of 4-bit codes, which a test holds
against their definition.
"""

from __future__ import annotations

import json
from math import prod

import numpy as np
import torch

from harness.merge.base.codecs.bnb_4bit import FP4, NF4


def four_bit(
    key: str,
    shape: tuple[int, ...],
    *,
    seed: int = 0,
    kind: str = "nf4",
    nested: bool = False,
    blocksize: int = 64,
    dtype: str = "float32",
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """The tensors of a 4-bit weight with random codes, and its float64 values."""
    random = np.random.default_rng(seed)
    elements = prod(shape)
    blocks, table = -(-elements // blocksize), {"nf4": NF4, "fp4": FP4}[kind]
    codes = [int(code) for code in random.integers(0, 16, elements)]
    padded = [*codes, 0] if elements % 2 else codes
    packed = [padded[i] * 16 + padded[i + 1] for i in range(0, len(padded), 2)]
    state: dict[str, object] = {"quant_type": kind, "blocksize": blocksize, "dtype": dtype, "shape": list(shape)}
    tensors = {
        key: torch.tensor(packed, dtype=torch.uint8).reshape(-1, 1),
        f"{key}.quant_map": torch.tensor(table, dtype=torch.float32),
    }
    if nested:
        inner = random.integers(0, 256, blocks)
        outer = random.random(-(-blocks // 4)).astype(np.float32)
        mapped = np.sort(random.random(256)).astype(np.float32)
        state |= {"nested_blocksize": 4, "nested_dtype": "float32", "nested_offset": 0.125}
        tensors |= {
            f"{key}.absmax": torch.tensor(inner, dtype=torch.uint8),
            f"{key}.nested_absmax": torch.tensor(outer),
            f"{key}.nested_quant_map": torch.tensor(mapped),
        }
        scales = [
            float(np.float32(np.float32(mapped[inner[i]] * outer[i // 4]) + np.float32(0.125))) for i in range(blocks)
        ]
    else:
        absmax = random.random(blocks).astype(np.float32)
        tensors[f"{key}.absmax"] = torch.tensor(absmax)
        scales = [float(value) for value in absmax]
    text = json.dumps(state).encode()
    tensors[f"{key}.quant_state.bitsandbytes__{kind}"] = torch.tensor(list(text), dtype=torch.uint8)
    values = [
        float(np.float32(np.float32(table[codes[i]]) * np.float32(scales[i // blocksize]))) for i in range(elements)
    ]
    return tensors, np.array(values).reshape(shape)


def eight_bit(key: str, shape: tuple[int, int], seed: int = 0) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """The tensors of an 8-bit Linear, and its float64 values."""
    random = np.random.default_rng(seed)
    codes = random.integers(-127, 128, shape)
    scales = random.random(shape[0]).astype(np.float32)
    tensors = {
        f"{key}.weight": torch.tensor(codes, dtype=torch.int8),
        f"{key}.SCB": torch.tensor(scales),
        f"{key}.weight_format": torch.tensor(0, dtype=torch.uint8),
    }
    return tensors, codes * scales.astype(np.float64)[:, None] / 127


def e4m3(code: int) -> float:
    """The value of an E4M3 code (OFP8, no infinities), from its bits."""
    sign, exponent, mantissa = -1.0 if code >= 128 else 1.0, (code >> 3) & 15, code & 7
    return sign * (mantissa / 8 * 2.0**-6 if exponent == 0 else (1 + mantissa / 8) * 2.0 ** (exponent - 7))


def mxfp4(count: int, inner: int, out: int, seed: int = 0) -> tuple[torch.Tensor, torch.Tensor, np.ndarray]:
    """Blocks, scales, and the float64 parameter (num_experts, in, out)."""
    random = np.random.default_rng(seed)
    blocks = random.integers(0, 256, (count, out, inner // 32, 16))
    scales = random.integers(120, 132, (count, out, inner // 32))
    table = [0, 0.5, 1, 1.5, 2, 3, 4, 6]
    values = np.empty((count, inner, out))
    for e in range(count):
        for o in range(out):
            for i in range(inner):
                byte = int(blocks[e, o, i // 32, i % 32 // 2])
                code = byte & 15 if i % 2 == 0 else byte >> 4
                values[e, i, o] = (-1 if code & 8 else 1) * table[code & 7] * 2.0 ** (int(scales[e, o, i // 32]) - 127)
    return torch.tensor(blocks, dtype=torch.uint8), torch.tensor(scales, dtype=torch.uint8), values


# --- any of them ----------------------------------------------------------------------------------------------------

SETTINGS: dict[str, dict[str, object]] = {
    "nf4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "fp4": {"quant_method": "bitsandbytes", "load_in_4bit": True},
    "int8": {"quant_method": "bitsandbytes", "load_in_8bit": True},
    "fp8": {"quant_method": "fp8", "weight_block_size": [3, 4]},
    "mxfp4": {"quant_method": "mxfp4"},
}
"""What config.json says of each format."""
FORMATS = tuple(SETTINGS)


def can_quantise(kind: str, key: str, shape: tuple[int, ...]) -> bool:
    """Whether a format can hold a weight of this name and shape."""
    if kind == "mxfp4":
        return len(shape) == 3 and shape[1] % 32 == 0
    if kind == "int8":
        return len(shape) == 2 and key.endswith(".weight")
    return len(shape) >= 2


def quantise(kind: str, key: str, shape: tuple[int, ...], *, seed: int) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """The tensors of a weight with random codes in a format, and its float64 values."""
    random = np.random.default_rng(seed)
    if kind == "int8":
        return eight_bit(key.removesuffix(".weight"), (shape[0], shape[1]), seed)
    if kind == "fp8":
        return fp8(key, shape, (3, 4), seed)
    if kind == "mxfp4":
        blocks, scales, values = mxfp4(*shape, seed=seed)
        return {f"{key}_blocks": blocks, f"{key}_scales": scales}, values
    dtype = ("float32", "bfloat16")[seed % 2]
    nested, blocksize = bool(random.integers(2)), int(random.choice([4, 16, 64]))
    tensors, values = four_bit(key, shape, seed=seed, kind=kind, nested=nested, blocksize=blocksize, dtype=dtype)
    # What training saw was rounded to the dtype that the weight had before.
    rounded = torch.tensor(values, dtype=torch.float32).to(torch.bfloat16 if dtype == "bfloat16" else torch.float32)
    return tensors, rounded.double().numpy()


def fp8(
    key: str, shape: tuple[int, ...], block: tuple[int, int], seed: int = 0
) -> tuple[dict[str, torch.Tensor], np.ndarray]:
    """The tensors of an FP8 weight with a scale per block, and its float64 values."""
    random = np.random.default_rng(seed)
    codes = random.choice([code for code in range(256) if code & 127 != 127], shape)
    scales = random.random((*shape[:-2], -(-shape[-2] // block[0]), -(-shape[-1] // block[1]))).astype(np.float32)
    values = np.empty(shape)
    for at in np.ndindex(*shape):
        scale = scales[(*at[:-2], at[-2] // block[0], at[-1] // block[1])]
        values[at] = np.float32(np.float32(e4m3(int(codes[at]))) * scale)
    return {
        key: torch.tensor(codes, dtype=torch.uint8).view(torch.float8_e4m3fn),
        f"{key}_scale_inv": torch.tensor(scales),
    }, values
