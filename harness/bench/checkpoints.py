"""Writing the checkpoints and adapters that are measured: real bytes for those that are merged, sparse files for those
that are only planned.

Weights are normally distributed like a trained model's (standard deviation 0.02), deltas some two percent of them,
about five units in the last place of bf16. Base weights come from one pool of random values, each tensor from another
place of it: they are read and written like any others, and take a fraction of the time to make. ``lora_A`` and
``lora_B`` are drawn afresh, so every delta is its own.
"""

from __future__ import annotations

import json
from collections.abc import Iterable, Sequence
from math import prod
from pathlib import Path
from typing import IO, Any

import numpy as np
import numpy.typing as npt

from harness.bench.adapters import AdapterLayout
from harness.bench.layouts import BF16, DeepseekV3, Qwen3Moe, Shape

SHARDS = 6
DEEPSEEK_SHARDS = 163
WEIGHT_STD = 0.02
B_STD = 0.003
FLOAT32 = 4
POOL = (1 << 22) + 3
"""Values in the pool; odd, so that tensors of even sizes begin at ever other places."""

Entry = tuple[str, Shape]


def bfloat16_bits(values: npt.NDArray[np.float32]) -> npt.NDArray[np.uint16]:
    """Return float32 values rounded to the nearest bfloat16, ties to even, as bits."""
    bits = values.view(np.uint32)
    rounded: npt.NDArray[np.uint16] = ((bits + 0x7FFF + ((bits >> 16) & 1)) >> 16).astype(np.uint16)
    return rounded


class Weights:
    """Base weights out of a pool."""

    def __init__(self, seed: int) -> None:
        random = np.random.default_rng(seed)
        self._pool = bfloat16_bits(random.standard_normal(POOL, dtype=np.float32) * np.float32(WEIGHT_STD))
        self._place = 0

    def write(self, file: IO[bytes], count: int) -> None:
        """Write ``count`` bf16 values."""
        while count:
            part = self._pool[self._place : self._place + count]
            file.write(part.tobytes())
            self._place = (self._place + len(part)) % POOL
            count -= len(part)


def header(entries: Iterable[Entry], dtype: str, size: int) -> tuple[bytes, int]:
    """Return a safetensors header with its length, and how many bytes of data follow.

    Args:
        entries: keys and shapes, in the order of the data.
        dtype: as safetensors names it.
        size: bytes of an element.
    """
    described: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for key, shape in entries:
        stop = offset + size * prod(shape)
        described[key] = {"dtype": dtype, "shape": list(shape), "data_offsets": [offset, stop]}
        offset = stop
    text = json.dumps(described, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text, offset


def split(entries: Sequence[Entry], shards: int) -> list[list[Entry]]:
    """Return the tensors of each shard: in order, cut where a shard has its share of the bytes, as ``save_pretrained``
    does.
    """
    total = sum(prod(shape) for _, shape in entries)
    parts: list[list[Entry]] = [[] for _ in range(shards)]
    done = 0
    for entry in entries:
        parts[min(done * shards // total, shards - 1)].append(entry)
        done += prod(entry[1])
    return parts


def shard_names(count: int) -> list[str]:
    """Return the file names of a checkpoint's shards."""
    return [f"model-{number:05d}-of-{count:06d}.safetensors" for number in range(1, count + 1)]


def write_json(path: Path, value: object) -> None:
    """Write a JSON file."""
    path.write_text(json.dumps(value, indent=2) + "\n", encoding="utf-8")


def _write_rest(folder: Path, base: Qwen3Moe | DeepseekV3, parts: Sequence[Sequence[Entry]]) -> None:
    names = shard_names(len(parts))
    places = {key: name for name, part in zip(names, parts, strict=True) for key, _ in part}
    size = sum(BF16 * prod(shape) for part in parts for _, shape in part)
    write_json(folder / "model.safetensors.index.json", {"metadata": {"total_size": size}, "weight_map": places})
    write_json(folder / "config.json", base.config())
    write_json(folder / "generation_config.json", {"do_sample": True, "temperature": 0.6, "top_k": 20, "top_p": 0.95})


def write_base(folder: Path, base: Qwen3Moe, *, seed: int) -> None:
    """Write a base checkpoint in six shards that tear layers and experts apart."""
    folder.mkdir(parents=True)
    parts = split(list(base.tensors()), SHARDS)
    weights = Weights(seed)
    for name, part in zip(shard_names(SHARDS), parts, strict=True):
        with (folder / name).open("wb") as file:
            head, _ = header(part, "BF16", BF16)
            file.write(head)
            for _, shape in part:
                weights.write(file, prod(shape))
    _write_rest(folder, base, parts)


def _factor(random: np.random.Generator, key: str, shape: Shape) -> npt.NDArray[np.float32]:
    """Return lora_A as PEFT initialises it (uniform, ±1/√in), or lora_B as after some training."""
    if ".lora_A." in key:
        edge = shape[1] ** -0.5
        return ((random.random(shape, dtype=np.float32) * 2 - 1) * np.float32(edge)).astype(np.float32)
    return random.standard_normal(shape, dtype=np.float32) * np.float32(B_STD)


def write_adapter(folder: Path, adapter: AdapterLayout, *, seed: int) -> None:
    """Write an adapter with float32 factors, as PEFT saves them."""
    folder.mkdir(parents=True)
    random = np.random.default_rng(seed)
    with (folder / "adapter_model.safetensors").open("wb") as file:
        head, _ = header(adapter.tensors, "F32", FLOAT32)
        file.write(head)
        for key, shape in adapter.tensors:
            file.write(_factor(random, key, shape).tobytes())
    write_json(folder / "adapter_config.json", adapter.config())


def write_hollow(base_folder: Path, adapter_folder: Path, base: DeepseekV3, adapter: AdapterLayout) -> int:
    """Write a checkpoint and an adapter with true headers and holes for data.

    Return the bytes that they claim to have.
    """
    base_folder.mkdir(parents=True)
    adapter_folder.mkdir(parents=True)
    parts = split(list(base.tensors()), DEEPSEEK_SHARDS)
    claimed = 0
    for name, part in zip(shard_names(DEEPSEEK_SHARDS), parts, strict=True):
        claimed += _hollow(base_folder / name, part, "BF16", BF16)
    _write_rest(base_folder, base, parts)
    claimed += _hollow(adapter_folder / "adapter_model.safetensors", adapter.tensors, "F32", FLOAT32)
    write_json(adapter_folder / "adapter_config.json", adapter.config())
    return claimed


def _hollow(path: Path, entries: Sequence[Entry], dtype: str, size: int) -> int:
    head, data = header(entries, dtype, size)
    with path.open("wb") as file:
        file.write(head)
        file.truncate(len(head) + data)
    return len(head) + data
