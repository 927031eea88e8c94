"""Writing a checkpoint to disk (shards, index, config, tokenizer), and its SHA-256.

Tensors are dealt to the shards one by one in turn. So the experts of every layer lie in different shards. A merge
engine must not assume that one shard holds all experts of a layer: here that is false in every checkpoint of several.

The safetensors format is written by hand: eight bytes of header length, a JSON header padded to eight bytes, data. The
library's own writer changed its interface and may change its header. The bytes here must not depend on its version.
"""

from __future__ import annotations

import hashlib
import json
from pathlib import Path
from typing import Any

from harness.engines.engine import TORCH_DTYPE
from harness.worker.checkpoints.family import Checkpoint
from harness.worker.checkpoints.random_bits import random_float32, to_bfloat16_bytes
from harness.worker.checkpoints.tensors import TensorSpec
from harness.worker.checkpoints.tokenizer import tokenizer_files

SAFETENSORS_DTYPE = {
    "float32": "F32", "bf16": "BF16", "torch.float32": "F32", "torch.int64": "I64", "torch.int32": "I32",
    "torch.bool": "BOOL", "torch.uint8": "U8",
}  # fmt: skip


def write_checkpoint(checkpoint: Checkpoint, directory: Path, *, seed: int, dtype: str) -> str:
    """Write every file of the checkpoint into ``directory``, which must be empty or absent.

    Args:
        checkpoint: what to write.
        directory: where; created.
        seed: selects the weights.
        dtype: ``float32`` or ``bf16``: how weights are stored. ``always_float32`` tensors stay float32.

    Returns:
        SHA-256 over all files, sorted by name: hex.
    """
    directory.mkdir(parents=True, exist_ok=True)
    shards: list[list[tuple[TensorSpec, str, bytes]]] = [[] for _ in range(checkpoint.shards)]
    weight_map: dict[str, str] = {}
    total = 0
    for position, spec in enumerate(checkpoint.tensors):
        shard = position % checkpoint.shards
        stored = "float32" if spec.always_float32 else dtype
        if spec.literal is not None:
            data, named = bytes.fromhex(spec.literal), SAFETENSORS_DTYPE[str(spec.stored_as)]
        else:
            data, named = tensor_bytes(spec, seed=seed, dtype=stored), SAFETENSORS_DTYPE[stored]
        shards[shard].append((spec, named, data))
        weight_map[spec.key] = _shard_name(shard, checkpoint.shards)
        total += len(data)
    for number, tensors in enumerate(shards):
        (directory / _shard_name(number, checkpoint.shards)).write_bytes(_safetensors(tensors))
    index = {"metadata": {"total_size": total}, "weight_map": dict(sorted(weight_map.items()))}
    files = {
        "config.json": _json(_with_dtype(checkpoint.config, dtype)),
        "generation_config.json": _json(checkpoint.generation_config),
        **tokenizer_files(_vocab_size(checkpoint.config)),
    }
    if checkpoint.shards > 1:
        files["model.safetensors.index.json"] = _json(index)
    for name, content in files.items():
        (directory / name).write_bytes(content)
    return sha256_of_directory(directory)


def tensor_bytes(spec: TensorSpec, *, seed: int, dtype: str) -> bytes:
    """Return the little-endian bytes of one tensor, C order."""
    import numpy as np

    values = random_float32(seed, f"{spec.key}#{spec.draw}" if spec.draw else spec.key, spec.count, spec.scale_exponent)
    if spec.offset:
        values = (values + np.float32(spec.offset)).astype(np.float32)
    if dtype == "bf16":
        return to_bfloat16_bytes(values)
    return values.astype("<f4").tobytes()


def _safetensors(tensors: list[tuple[TensorSpec, str, bytes]]) -> bytes:
    """Return the file's bytes: tensors in the order given, with the ``format`` entry that transformers insists on."""
    header: dict[str, Any] = {"__metadata__": {"format": "pt"}}
    offset = 0
    for spec, dtype, data in tensors:
        header[spec.key] = {"dtype": dtype, "shape": list(spec.shape), "data_offsets": [offset, offset + len(data)]}
        offset += len(data)
    text = json.dumps(header, separators=(",", ":")).encode()
    text += b" " * (-len(text) % 8)
    return len(text).to_bytes(8, "little") + text + b"".join(data for _, _, data in tensors)


def sha256_of_directory(directory: Path) -> str:
    """Return the SHA-256 over the names and contents of all files directly in ``directory``, sorted by name: hex."""
    digest = hashlib.sha256()
    for path in sorted(directory.iterdir()):
        digest.update(path.name.encode() + b"\0" + hashlib.sha256(path.read_bytes()).digest())
    return digest.hexdigest()


def _shard_name(number: int, shards: int) -> str:
    return "model.safetensors" if shards == 1 else f"model-{number + 1:05d}-of-{shards:05d}.safetensors"


def _vocab_size(config: dict[str, Any]) -> int:
    return int(config["text_config"]["vocab_size"] if "text_config" in config else config["vocab_size"])


def _with_dtype(config: dict[str, Any], dtype: str) -> dict[str, Any]:
    """Return the config with the dtype that published configs name, under the key that this family's config uses."""
    result = {key: TORCH_DTYPE[dtype] if key in {"dtype", "torch_dtype"} else value for key, value in config.items()}
    if "text_config" in config:
        result["text_config"] = _with_dtype(config["text_config"], dtype)
    return result


def _json(value: object) -> bytes:
    return (json.dumps(value, indent=2, sort_keys=True) + "\n").encode()
