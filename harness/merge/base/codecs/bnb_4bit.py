"""bitsandbytes 4-bit: NF4 and FP4, with plain or nested (double quantised) scales.

On disk ``weight`` holds two codes a byte, the high nibble first, over the flattened weight; ``weight.absmax`` one scale
a block of ``blocksize``; ``weight.quant_state.bitsandbytes__nf4`` (or ``__fp4``) JSON with shape, dtype and block
sizes. Nested, absmax is U8: scale = ``nested_quant_map[absmax] * nested_absmax[block of them] + nested_offset``.
Source: ``bitsandbytes.functional.QuantState.as_dict`` and ``dequantize_4bit`` (0.48 to 0.50), whose result is ``code *
absmax`` in float32, rounded to the dtype that the weight had before: that is what training saw, so that is what a delta
is added to.
"""

from __future__ import annotations

import os
from math import prod
from typing import TYPE_CHECKING, Any

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.codecs import ReadBytes
from harness.merge.base.weight import QuantisedSource
from harness.merge.errors import InconsistentCheckpointError, UnsupportedBaseError
from harness.merge.files.json_file import parse_object
from harness.merge.files.safetensors_file import MAX_DIMENSIONS, read_range

if TYPE_CHECKING:
    import torch

NF4 = (
    -1.0, -0.6961928009986877, -0.5250730514526367, -0.39491748809814453, -0.28444138169288635, -0.18477343022823334,
    -0.09105003625154495, 0.0, 0.07958029955625534, 0.16093020141124725, 0.24611230194568634, 0.33791524171829224,
    0.44070982933044434, 0.5626170039176941, 0.7229568362236023, 1.0,
)  # fmt: skip
FP4 = tuple(sign * value / 12 for sign in (1, -1) for value in (0, 0.0625, 8, 12, 4, 6, 2, 3))
CODES = {"nf4": NF4, "fp4": FP4}
FORMATS = ("nf4", "fp4")
STATES = {f"quant_state.bitsandbytes__{name}": name for name in FORMATS}
DTYPES = ("float32", "bfloat16", "float16")
NESTED = ("nested_absmax", "nested_quant_map")
MAX_STATE = 65536
MAP_ENTRIES = 256
LARGEST_OFFSET = 3.4e38
"""About the largest float32; the offset is a mean of scales."""


def _state(base: Checkpoint, key: str) -> dict[str, Any]:
    """Return the JSON that a quant_state tensor holds."""
    info, shard = base.info(key), base.shards[base.shard_of[key]]
    if info.dtype != "U8" or info.nbytes > MAX_STATE:
        raise InconsistentCheckpointError(
            f"{key} is {info.dtype} with {info.nbytes} bytes: no bitsandbytes quant_state."
        )
    descriptor = os.open(shard.path, os.O_RDONLY | os.O_CLOEXEC)
    try:
        data = bytes(read_range(descriptor, info.start, info.stop, what=shard.name))
    finally:
        os.close(descriptor)
    return parse_object(data, key)


def _count(state: dict[str, Any], name: str, key: str) -> int:
    value = state.get(name)
    if type(value) is not int or not 0 < value < 2**31:
        raise InconsistentCheckpointError(f"{key}: {name} is {str(value)[:40]!r}, not a positive number.")
    return value


def _check(base: Checkpoint, key: str, wanted: dict[str, tuple[str, int]]) -> None:
    """Prove that the parts of ``key`` are there, with the dtype and number of elements that they need."""
    for name, (dtype, count) in wanted.items():
        part = f"{key}.{name}"
        if part not in base:
            raise InconsistentCheckpointError(f"{key} is quantised by bitsandbytes and {part} is missing.")
        if base.info(part).dtype != dtype or prod(base.info(part).shape) != count:
            info = base.info(part)
            raise InconsistentCheckpointError(
                f"{part} is {info.dtype} {list(info.shape)}; {count} elements of {dtype} are needed."
            )


def find(base: Checkpoint) -> dict[str, QuantisedSource]:
    """Return the 4-bit weights by key; see the package."""
    found: dict[str, QuantisedSource] = {}
    for state_key in base.shard_of:
        name = next((suffix for suffix in STATES if state_key.endswith(f".{suffix}")), None)
        if name is None:
            continue
        key = state_key.removesuffix(f".{name}")
        state = _state(base, state_key)
        shape = state.get("shape")
        if (
            not isinstance(shape, list)
            or not 0 < len(shape) <= MAX_DIMENSIONS
            or not all(type(size) is int and 0 < size < 2**31 for size in shape)
        ):
            raise InconsistentCheckpointError(f"{state_key}: shape is {str(shape)[:60]!r}.")
        if state.get("quant_type") != STATES[name] or state.get("dtype") not in DTYPES:
            raise UnsupportedBaseError(
                f"{state_key}: quant_type {str(state.get('quant_type'))[:20]!r} with dtype"
                f" {str(state.get('dtype'))[:20]!r} is not decoded."
            )
        blocksize = _count(state, "blocksize", state_key)
        elements = prod(shape)
        blocks = -(-elements // blocksize)
        if key not in base or base.info(key).nbytes != -(-elements // 2):
            raise InconsistentCheckpointError(
                f"{key} does not hold the {elements} 4-bit values that {state_key} tells of."
            )
        nested = f"{key}.nested_absmax" in base
        options: dict[str, object] = {
            "codes": STATES[name],
            "blocksize": blocksize,
            "dtype": state["dtype"],
            "nested": nested,
        }
        wanted = {"absmax": ("U8" if nested else "F32", blocks), "quant_map": ("F32", len(NF4))}
        if nested:
            outer, offset = _count(state, "nested_blocksize", state_key), state.get("nested_offset")
            # The comparison holds for integers of any size, and NaN and infinity fail it.
            if (
                isinstance(offset, bool)
                or not isinstance(offset, int | float)
                or not abs(offset) <= LARGEST_OFFSET
                or state.get("nested_dtype") != "float32"
            ):
                raise UnsupportedBaseError(
                    f"{state_key}: nested scales with offset {str(offset)[:20]!r} are not decoded."
                )
            options |= {"nested_blocksize": outer, "nested_offset": float(offset)}
            wanted |= {"nested_absmax": ("F32", -(-blocks // outer)), "nested_quant_map": ("F32", MAP_ENTRIES)}
        _check(base, key, wanted)
        parts = {"weight": key, "state": state_key} | {part: f"{key}.{part}" for part in wanted}
        found[key] = QuantisedSource(codec="bnb_4bit", parts=parts, shape=tuple(shape), options=options)
    return found


def _floats(quantised: QuantisedSource, read: ReadBytes, part: str, first: int, last: int) -> torch.Tensor:
    import torch  # noqa: PLC0415 - planning needs none

    return torch.frombuffer(read(quantised.parts[part], first * 4, last * 4), dtype=torch.float32)


def _scales(quantised: QuantisedSource, read: ReadBytes, first: int, last: int) -> torch.Tensor:
    """Return the scales of blocks ``first:last`` in float32."""
    import torch  # noqa: PLC0415 - planning needs none

    if not quantised.options["nested"]:
        return _floats(quantised, read, "absmax", first, last)
    outer = int(str(quantised.options["nested_blocksize"]))
    low, high = first // outer, -(-last // outer)
    codes = torch.frombuffer(read(quantised.parts["absmax"], first, last), dtype=torch.uint8).long()
    inner = _floats(quantised, read, "nested_quant_map", 0, MAP_ENTRIES)[codes]
    spread = _floats(quantised, read, "nested_absmax", low, high)[torch.arange(first, last) // outer - low]
    return inner * spread + torch.tensor(quantised.options["nested_offset"], dtype=torch.float32)


def rows(quantised: QuantisedSource, read: ReadBytes, first: int, last: int) -> torch.Tensor:
    """Return rows ``first:last`` in float32; see the package.

    Raises:
        UnsupportedBaseError: the file's table of codes is not bitsandbytes', which its kernels would ignore.
    """
    import torch  # noqa: PLC0415 - planning needs none

    width, blocksize = quantised.shape[-1], int(str(quantised.options["blocksize"]))
    table = torch.tensor(CODES[str(quantised.options["codes"])], dtype=torch.float32)
    if not torch.allclose(_floats(quantised, read, "quant_map", 0, len(NF4)), table, rtol=0, atol=1e-6):
        raise UnsupportedBaseError(f"{quantised.parts['quant_map']} is not the table of {quantised.options['codes']}.")
    start, stop = first * width, last * width
    packed = torch.frombuffer(read(quantised.parts["weight"], start // 2, -(-stop // 2)), dtype=torch.uint8).long()
    codes = torch.stack((packed >> 4, packed & 0xF), dim=-1).reshape(-1)[start % 2 :][: stop - start]
    low, high = start // blocksize, -(-stop // blocksize)
    scales = _scales(quantised, read, low, high)[torch.arange(start, stop) // blocksize - low]
    values = (table[codes] * scales).to(getattr(torch, str(quantised.options["dtype"])))
    return values.float().reshape(last - first, width)
