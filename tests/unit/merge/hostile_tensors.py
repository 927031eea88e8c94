"""Mutations of safetensors files: of the bytes, of the header alone, and of tensors with a header that fits them again.

The third kind matters most. A file that contradicts itself is refused at the door; one that is whole, and holds
something else than was meant, reaches every later step.
"""

from __future__ import annotations

import json
import struct
from collections.abc import Callable
from dataclasses import dataclass, replace
from math import prod
from random import Random
from typing import Any

from hostile_json import encode, hostile, mutate_text, mutate_value

BITS = {
    "BOOL": 8,
    "U8": 8,
    "I8": 8,
    "I16": 16,
    "U16": 16,
    "I32": 32,
    "U32": 32,
    "I64": 64,
    "U64": 64,
    "F16": 16,
    "BF16": 16,
    "F32": 32,
    "F64": 64,
    "C64": 64,
    "F8_E4M3": 8,
    "F8_E5M2": 8,
    "F8_E8M0": 8,
    "F8_E4M3FNUZ": 8,
    "F4": 4,
    "F6_E2M3": 6,
}
DTYPES = tuple(BITS)


@dataclass(frozen=True)
class Tensor:
    """One tensor as a file has it; ``data`` fills shape and dtype, except where a mutation lies."""

    name: str
    dtype: str
    shape: tuple[int, ...]
    data: bytes


def split(data: bytes) -> tuple[dict[str, Any], bytes]:
    """Return header and tensor data of a valid file."""
    length = struct.unpack("<Q", data[:8])[0]
    return json.loads(data[8 : 8 + length]), data[8 + length :]


def join(header: bytes, data: bytes, length: int | None = None) -> bytes:
    """Return a file with this header."""
    return struct.pack("<Q", len(header) if length is None else length) + header + data


def unpack(data: bytes) -> tuple[list[Tensor], Any]:
    """Return the tensors of a valid file, and its metadata."""
    header, body = split(data)
    metadata = header.pop("__metadata__", None)
    tensors = [
        Tensor(name, entry["dtype"], tuple(entry["shape"]), body[slice(*entry["data_offsets"])])
        for name, entry in header.items()
    ]
    if any(prod(tensor.shape) * BITS[tensor.dtype] != len(tensor.data) * 8 for tensor in tensors):
        raise ValueError("an earlier mutation left a header that does not fit")
    return tensors, metadata


def pack(tensors: list[Tensor], metadata: Any = None) -> bytes:
    """Return a file whose header fits its tensors, repeated names included."""
    entries = [] if metadata is None else [b'"__metadata__":' + encode(metadata)]
    position = 0
    for tensor in tensors:
        stop = position + len(tensor.data)
        entry = {"dtype": tensor.dtype, "shape": list(tensor.shape), "data_offsets": [position, stop]}
        entries.append(json.dumps(tensor.name).encode() + b":" + encode(entry))
        position = stop
    return join(b"{" + b",".join(entries) + b"}", b"".join(tensor.data for tensor in tensors))


# --- one tensor, whole ----------------------------------------------------------------------------------------------


def _renamed(random: Random, tensor: Tensor) -> Tensor:
    """Another name, mostly one that means something else."""
    name = tensor.name
    swaps = (
        ("lora_A", "lora_B"), ("lora_B.weight", "lora_B.bias"), ("lora_A.weight", "lora_embedding_A"),
        ("lora_B.weight", "lora_embedding_B"),
        ("lora_A.weight", "lora_magnitude_vector"), ("lora_A.weight", "lora_A.other.weight"), ("lora_", "lora_x_"),
        (".weight", ""), (".weight", ".bias"),
        (".base_layer", ""), ("experts", "experts.base_layer"), ("layers.0", "layers.1"),
        ("layers.0", "layers.999999999999"), ("layers.0", "layers.\u0663"),
        ("layers.0", "layers." + "9" * 5000), ("experts.0.", "experts.1."), ("experts.0.", "experts.7."),
        ("experts.0.", "experts.999999999."),
        ("experts.1.", "experts.999999999."), ("gate_proj", "up_proj"), ("up_proj", "down_proj"),
        ("gate_up_proj", "down_proj"), ("gate_proj", "w1"), ("model.", ""),
        ("model.", "model.language_model."), ("model.", "language_model.model."), ("base_model.model.", ""),
        ("q_proj", "k_proj"), ("self_attn", "mlp"),
        ("weight", "weight_scale_inv"), ("weight", "weight.absmax"), ("weight", "SCB"), ("proj", "proj_blocks"),
        ("_blocks", "_scales"), ("_blocks", ""),
        (".weight", ".weight.quant_state.bitsandbytes__nf4"), ("mlp.experts", "block_sparse_moe.experts"),
        ("q_proj", "experts.0.gate_proj"),
        ("input_linear", "output_linear"), ("output_linear", "output"), ("input_linear", "input"),
        ("q_proj", "modules_to_save.q_proj"),
    )  # fmt: skip
    fitting = [(old, new) for old, new in swaps if old in name]
    if fitting and random.random() < 0.8:
        old, new = random.choice(fitting)
        return replace(tensor, name=name.replace(old, new, 1))
    whole = (
        "", ".", "..", "a" * 3000, "\x00", "\ud800", f"{name}\n", f"{name}\ud800", "__metadata__", "lm_head.weight",
        "model.embed_tokens.weight", "experts.0",
        "base_model.model.", "base_model.model.lm_head.weight", f"{name}." + "original_module." * 9000,
        f"base_model.model.x{'.original_module.' * 4000}.",
        "base_model.model.model.embed_tokens.weight", "base_model.model.x.lora_A.weight",
        "base_model.model.model.layers.0.self_attn.q_proj.lora_B.bias",
        "base_model.model.model.embed_tokens.token_adapter.trainable_tokens_delta",
        "model.layers.0.self_attn.q_proj.bias", "é.weight",
    )  # fmt: skip
    return replace(tensor, name=random.choice(whole))


def _cast(random: Random, tensor: Tensor) -> Tensor:
    """Another dtype over the same bytes, the last dimension made to fit where it can be."""
    dtype = random.choice(DTYPES)
    bits = len(tensor.data) * 8
    lead = prod(tensor.shape[:-1]) * BITS[dtype]
    last = bits // lead if lead and bits % lead == 0 else 1
    return replace(tensor, dtype=dtype, shape=(*tensor.shape[:-1], last) if tensor.shape else tensor.shape)


def _typed(random: Random, tensor: Tensor) -> Tensor:
    """Another dtype for the same shape, the data made to fit it."""
    dtype = random.choice(DTYPES)
    size = -(-prod(tensor.shape) * BITS[dtype] // 8)
    return replace(tensor, dtype=dtype, data=(tensor.data * 8)[:size].ljust(size, b"\0"))


def _reshaped(random: Random, tensor: Tensor) -> Tensor:
    """Another shape for the same elements."""
    shape, count = tensor.shape, prod(tensor.shape)
    options = [
        shape[::-1], (count,), (1, *shape), (*shape, 1), (1, 1, *shape), (count, 1), (1, count), (1,) * 7 + (count,),
        (1,) * 8 + (count,),
        (*shape[:-2], shape[-1], shape[-2]) if len(shape) > 1 else shape, (*shape[1:], *shape[:1]),
    ]  # fmt: skip
    options += (
        [(2, count // 2), (2, *shape[:-1], shape[-1] // 2)] if count % 2 == 0 and shape and shape[-1] % 2 == 0 else []
    )
    return replace(tensor, shape=random.choice(options))


def _resized(random: Random, tensor: Tensor) -> Tensor:
    """One dimension more, less or doubled, or none at all, with data to fit."""
    shape = list(tensor.shape)
    if shape and random.random() < 0.9:
        at = random.randrange(len(shape))
        shape[at] = max(1, random.choice((shape[at] + 1, shape[at] - 1, shape[at] * 2, 1)))
    else:
        shape = []
    size = prod(shape) * BITS[tensor.dtype] // 8
    return replace(tensor, shape=tuple(shape), data=(tensor.data * 3)[:size].ljust(size, b"\1"))


def _filled(random: Random, tensor: Tensor) -> Tensor:
    """Other values: one NaN, infinity or huge number, zeros, all bits, noise, or other JSON where the tensor holds
    JSON.
    """
    if tensor.data[:1] == b"{":
        text = (
            encode(mutate_value(random, json.loads(tensor.data)))
            if random.random() < 0.9
            else mutate_text(random, tensor.data)
        )
        return replace(tensor, data=text, shape=(len(text),))
    data = bytearray(tensor.data)
    width = max(1, BITS[tensor.dtype] // 8)
    at = random.randrange(max(1, len(data) // width)) * width
    specials = {
        2: (b"\xc0\x7f", b"\x80\x7f", b"\x00\x7c", b"\x7f\x7f"),
        4: (b"\0\0\xc0\x7f", b"\0\0\x80\xff", b"\xff\xff\x7f\x7f", b"\1\0\0\0"),
    }
    if width in specials and random.random() < 0.6:
        data[at : at + width] = random.choice(specials[width])
    else:
        data[:] = random.choice(
            (bytes(len(data)), b"\xff" * len(data), random.randbytes(len(data)), b"\x7f" * len(data))
        )
    return replace(tensor, data=bytes(data))


EDITS: tuple[Callable[[Random, Tensor], Tensor], ...] = (
    _renamed,
    _renamed,
    _cast,
    _typed,
    _reshaped,
    _resized,
    _filled,
    _filled,
)


def mutate_tensors(random: Random, data: bytes) -> bytes:
    """Return a file that is whole, and holds something else: a tensor changed, dropped, doubled or exchanged with
    another.
    """
    tensors, metadata = unpack(data)
    at = random.randrange(len(tensors))
    # The tensors that a format hides JSON in are few among many, and worth more.
    state = [number for number, tensor in enumerate(tensors) if tensor.data[:1] == b"{"]
    if state and random.random() < 0.4:
        tensors[state[0]] = _filled(random, tensors[random.choice(state)])
        return pack(tensors, metadata)
    kind = random.random()
    if kind < 0.75:
        tensors[at] = random.choice(EDITS)(random, tensors[at])
    elif kind < 0.83:
        del tensors[at]
    elif kind < 0.93:
        tensors.append(random.choice(EDITS)(random, tensors[at]))
    elif kind < 0.97:
        other = random.randrange(len(tensors))
        tensors[at], tensors[other] = (
            replace(tensors[at], name=tensors[other].name),
            replace(tensors[other], name=tensors[at].name),
        )
    else:
        metadata = mutate_value(random, metadata or {"format": "pt"})
    return pack(tensors, metadata)


# --- the header alone, and the bytes --------------------------------------------------------------------------------


def mutate_header(random: Random, data: bytes) -> bytes:
    """Return a file whose header no longer fits its data, or is no header."""
    header, body = split(data)
    names = [name for name in header if name != "__metadata__"]
    entry = header[random.choice(names)]
    kind = random.random()
    if kind < 0.3:
        begin, end = entry["data_offsets"]
        shift = random.choice(
            (1, -1, 2, -2, 4, -4, 8, end - begin, begin - end, 2**31, 2**63, 2**64, -(2**63), 10**4299)
        )
        which = random.choice(
            (
                (begin + shift, end + shift),
                (begin, end + shift),
                (begin + shift, end),
                (end, begin),
                (0, end),
                (begin, begin),
            )
        )
        entry["data_offsets"] = list(which)
    elif kind < 0.4:
        other = header[random.choice(names)]
        entry["data_offsets"], other["data_offsets"] = other["data_offsets"], entry["data_offsets"]
    elif kind < 0.5:
        entry["shape"] = random.choice(
            (
                [0],
                [-1],
                [2**62, 4],
                [2**32, 2**32],
                [2**16] * 8,
                [2**48] * 8,
                [],
                [1] * 100,
                [10**4000],
                [1.0],
                [True],
                ["1"],
                hostile(random),
            )
        )
    elif kind < 0.6:
        entry["dtype"] = random.choice((*DTYPES, "F31", "f32", "", "F32 ", hostile(random)))
    elif kind < 0.9:
        return join(encode(mutate_value(random, header)), body)
    elif kind < 0.95:
        return join(mutate_text(random, json.dumps(header).encode()), body)
    else:
        raw = json.dumps(header).encode()
        return join(
            raw,
            body,
            random.choice(
                (
                    0,
                    1,
                    2,
                    len(raw) - 1,
                    len(raw) + 1,
                    len(raw) + len(body),
                    2**20,
                    10**8,
                    2**31,
                    2**62,
                    2**63,
                    2**64 - 1,
                )
            ),
        )
    return join(encode(header), body)


def mutate_bytes(random: Random, data: bytes) -> bytes:
    """Return a file that was cut, lengthened or damaged somewhere."""
    at = random.choice((random.randrange(len(data) + 1), random.randrange(min(len(data), 9)), len(data) - 1))
    return random.choice((
        data[:at], data + b"\0", data + data, data[:at] + bytes([random.randrange(256)]) + data[at + 1 :],
        data[:at] + b"\0" + data[at:], b"",
        data[: max(0, at - 1)] + data[at:], data[:8], b"\x80\x04" + data, data[::-1],
    ))  # fmt: skip


def mutate_file(random: Random, data: bytes) -> bytes:
    """Return a mutated safetensors file; whole ones most often."""
    kind = random.random()
    mutate = mutate_tensors if kind < 0.75 else mutate_header if kind < 0.94 else mutate_bytes
    return mutate(random, data)
