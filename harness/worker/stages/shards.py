"""The tensors of a checkpoint directory and what its index says of them, where nothing of either is believed.

A merged directory may be broken in any way. What cannot be read is a finding, so that all the rest is judged still.
"""

from __future__ import annotations

import json
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

INDEX = "model.safetensors.index.json"


class IndexUnreadableError(ValueError):
    """The file is no index of tensors."""


@dataclass(frozen=True, kw_only=True)
class Weights:
    """What the shards of a directory hold.

    Attributes:
        tensors: key → tensor, on the CPU. A key that two shards hold is none of them: no loader says which counts.
        shards: key → name of its shard, of those keys.
        repeated: keys that more than one shard holds.
        unreadable: shards that could not be read, or tensors of one, with the reason.
        metadata: shard → what its header says beside the tensors; empty where it has nothing.
    """

    tensors: dict[str, Any] = field(default_factory=dict)
    shards: dict[str, str] = field(default_factory=dict)
    repeated: set[str] = field(default_factory=set)
    unreadable: list[str] = field(default_factory=list)
    metadata: dict[str, dict[str, str]] = field(default_factory=dict)


def read_weights(directory: Path) -> Weights:
    """Read every tensor that can be read; nothing where there is no such directory."""
    from safetensors import SafetensorError, safe_open

    weights = Weights()
    for path in sorted(directory.glob("*.safetensors")):
        try:
            with safe_open(path, framework="pt") as shard:
                found = {key: shard.get_tensor(key) for key in shard.keys()}  # noqa: SIM118 — not a dict
                weights.metadata[path.name] = shard.metadata() or {}
        except (SafetensorError, OSError) as error:
            weights.unreadable.append(f"{path.name} (unreadable: {error})")
            continue
        weights.repeated.update(found.keys() & weights.shards.keys())
        weights.tensors.update(found)
        weights.shards.update(dict.fromkeys(found, path.name))
    for key in weights.repeated:
        del weights.tensors[key], weights.shards[key]
    return weights


def read_index(directory: Path) -> tuple[dict[str, str], Any] | None:
    """Return the index's key → shard and the total size that it declares; None where there is no index.

    Raises:
        IndexUnreadableError: it is no JSON object with a ``weight_map`` of names.
    """
    path = directory / INDEX
    if not path.exists():
        return None
    try:
        index = json.loads(path.read_bytes())
    except (ValueError, OSError, RecursionError) as error:
        raise IndexUnreadableError(f"{INDEX} (unreadable: {error})") from error
    weight_map = index.get("weight_map") if isinstance(index, dict) else None
    if not isinstance(weight_map, dict) or not all(isinstance(shard, str) for shard in weight_map.values()):
        raise IndexUnreadableError(f"{INDEX} (no weight_map of names)")
    metadata = index.get("metadata", {})
    if not isinstance(metadata, dict):
        raise IndexUnreadableError(f"{INDEX} (metadata is no object)")
    return weight_map, metadata.get("total_size")


def moved_in_index(base: Path, directory: Path) -> list[str]:
    """Return what the index says otherwise than the base's, where both can be read: keys in other shards, another size.

    An engine that keeps bytes leaves every tensor in its shard.
    """
    try:
        ours, theirs = read_index(base), read_index(directory)
    except IndexUnreadableError:
        return []
    if ours is None or theirs is None:
        return []
    (before, size), (after, declared) = ours, theirs
    moved = sorted(f"{key} (in {after[key]})" for key in before.keys() & after.keys() if before[key] != after[key])
    return moved + ([] if size is None or declared is not None else ["total_size (the base's index has it)"])


def wrong_in_index(directory: Path, weights: Weights) -> list[str]:
    """Return what the index says that the shards do not: some loaders believe it."""
    try:
        index = read_index(directory)
    except IndexUnreadableError as error:
        return [str(error)]
    if index is None:
        return []
    weight_map, declared = index
    found = weights.shards
    wrong = sorted(key for key in weight_map.keys() | found.keys() if weight_map.get(key) != found.get(key))
    size = sum(tensor.nbytes for tensor in weights.tensors.values())
    return wrong + ([] if declared is None or declared == size else [f"total_size {declared} (it is {size})"])
