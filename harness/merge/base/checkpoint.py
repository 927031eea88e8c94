"""A base checkpoint as its headers, index and config.json describe it; no tensor data is read.

Opening a checkpoint proves that its parts agree: every shard exists and is a complete safetensors file, index and
shards name the same tensors, and nothing leads out of the directory.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from harness.merge.errors import InconsistentCheckpointError, UnsafeFormatError, listed
from harness.merge.files.confine import check_name, confined, open_root, walk_files
from harness.merge.files.json_file import read_object
from harness.merge.files.safetensors_file import TensorFile, TensorInfo, read_header

SINGLE_FILE = "model.safetensors"
INDEX_FILE = "model.safetensors.index.json"
CONFIG_FILE = "config.json"
MANIFEST_FILE = "merge_manifest.json"
LEDGER_FILE = ".merge-ledger.jsonl"
"""What is finished of a merge (``ledger``); it is kept until the output is there."""
OURS = frozenset({MANIFEST_FILE, LEDGER_FILE})
"""What a merge writes beside the model.

In a base they tell of another merge, and a ledger would be taken for this one's.
"""

OTHER_WEIGHTS = (".bin", ".pt", ".pth", ".ckpt", ".h5", ".msgpack", ".gguf", ".ggml", ".onnx", ".index.json")
"""Files that hold, or lead to, a second copy of the weights: beside merged shards they would still be the base's."""

EXPERT_COUNT_KEYS = ("num_experts", "n_routed_experts", "num_local_experts", "moe_num_experts")
"""What config.json calls the number of routed experts.

Which one depends on the family and on the transformers that wrote it.
"""


@dataclass(frozen=True, kw_only=True)
class Checkpoint:
    """A validated base.

    ``shards`` are sorted by name and ``shard_of`` gives, for each tensor key, the position of its shard. ``files`` are
    the relative paths of everything that a merge copies beside the shards (the index included), ``left_out`` of what it
    does not: weights in other formats or under other names, which would stay the base's, and what an earlier merge
    wrote about itself.
    """

    root: Path
    config: Mapping[str, Any]
    shards: tuple[TensorFile, ...]
    shard_of: Mapping[str, int]
    files: tuple[str, ...]
    left_out: tuple[str, ...]

    def info(self, key: str) -> TensorInfo:
        """Return the header entry of the tensor ``key``."""
        return self.shards[self.shard_of[key]].tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.shard_of

    @property
    def text_config(self) -> Mapping[str, Any]:
        """The part of config.json that describes the language model: ``text_config`` where there is one, else all of
        it.
        """
        nested = self.config.get("text_config")
        return nested if isinstance(nested, dict) else self.config

    @property
    def num_hidden_layers(self) -> int | None:
        """Number of decoder layers in memory; published files may hold more (multi-token-prediction layers)."""
        value = self.text_config.get("num_hidden_layers")
        return value if type(value) is int else None

    @property
    def num_experts(self) -> int | None:
        """Number of routed experts that config.json declares, or None where it declares none.

        Raises:
            InconsistentCheckpointError: it declares two different numbers.
        """
        found = {key: self.text_config[key] for key in EXPERT_COUNT_KEYS if type(self.text_config.get(key)) is int}
        if len(set(found.values())) > 1:
            said = ", ".join(f"{key} = {value}" for key, value in found.items())
            raise InconsistentCheckpointError(f"config.json declares different numbers of experts: {said}.")
        return next(iter(found.values()), None)

    @property
    def ties_word_embeddings(self) -> bool:
        """Whether lm_head and embed_tokens are one tensor in memory.

        Where config.json does not say, whether lm_head is not stored.
        """
        said = [
            section["tie_word_embeddings"]
            for section in (self.config, self.text_config)
            if "tie_word_embeddings" in section
        ]
        return any(said) if said else not any(key.endswith("lm_head.weight") for key in self.shard_of)


def _no_weights(root: Path) -> InconsistentCheckpointError | UnsafeFormatError:
    """Return the error for a directory that has neither an index nor ``model.safetensors``."""
    names = sorted(path.name for path in root.iterdir())
    pickles = [name for name in names if name.endswith((".bin", ".pt", ".pth", ".ckpt"))]
    if pickles:
        return UnsafeFormatError(
            f"the base's weights are pickles ({listed(pickles)}), which run code when they are read.",
            "Convert the checkpoint to safetensors with a tool you trust, then merge.",
        )
    shards = [name for name in names if name.endswith(".safetensors")]
    if shards:
        return InconsistentCheckpointError(
            f"{INDEX_FILE} is missing, so nothing says which tensors {listed(shards)} should hold.",
            "Download the index file of the checkpoint again.",
        )
    return InconsistentCheckpointError(f"the base holds no {SINGLE_FILE} and no {INDEX_FILE}.")


def _weight_map(root: Path) -> dict[str, str] | None:
    """Return the index's tensor-to-shard map, or None for a single-file checkpoint."""
    single, index = (root / SINGLE_FILE).exists(), (root / INDEX_FILE).exists()
    if not index:
        if not single:
            raise _no_weights(root)
        return None
    weight_map = read_object(confined(root, INDEX_FILE)).get("weight_map")
    if (
        not isinstance(weight_map, dict)
        or not weight_map
        or not all(isinstance(name, str) for name in weight_map.values())
    ):
        raise InconsistentCheckpointError(f"{INDEX_FILE} has no weight_map of tensor names to file names.")
    for name in set(weight_map.values()):
        check_name(name, INDEX_FILE)
        if not name.endswith(".safetensors"):
            raise UnsafeFormatError(f"{INDEX_FILE} names {name}, and only safetensors is read.")
    if single and SINGLE_FILE not in weight_map.values():
        raise InconsistentCheckpointError(
            f"the base holds both {SINGLE_FILE} and an {INDEX_FILE} that does not name it; libraries disagree on which"
            " counts.",
            "Remove the one that is not meant.",
        )
    return weight_map


def _check_index(shards: tuple[TensorFile, ...], shard_of: Mapping[str, int], weight_map: Mapping[str, str]) -> None:
    """Prove that index and shards name the same tensors in the same places."""
    absent = [key for key in weight_map if key not in shard_of]
    unknown = [key for key in shard_of if key not in weight_map]
    moved = [key for key, shard in shard_of.items() if key in weight_map and weight_map[key] != shards[shard].name]
    for names, problem in (
        (absent, "names tensors that no shard holds"),
        (unknown, "does not name tensors that the shards hold"),
        (moved, "places tensors in other shards than they are in"),
    ):
        if names:
            raise InconsistentCheckpointError(
                f"{INDEX_FILE} {problem}: {listed(names)}.", "Download the checkpoint again."
            )


def _sort_files(root: Path, shards: tuple[TensorFile, ...], keys: Mapping[str, int]) -> tuple[list[str], list[str]]:
    """Return (copied, left out) of the files that are not shards of the checkpoint."""
    names = {shard.name for shard in shards}
    copied: list[str] = []
    left_out: list[str] = []
    for relative in walk_files(root):
        if relative in names:
            continue
        name = Path(relative).name
        second = name.endswith(OTHER_WEIGHTS) or name.startswith("consolidated")
        if relative == INDEX_FILE:
            second = False
        elif name.endswith(".safetensors") and not second:
            second = not keys.keys().isdisjoint(read_header(confined(root, relative), name=relative).tensors)
        if second or Path(relative).parts[0] in OURS:
            left_out.append(relative)
        else:
            confined(root, relative)
            copied.append(relative)
    return copied, left_out


def open_checkpoint(path: Path) -> Checkpoint:
    """Return the checkpoint in a directory, validated from its headers.

    Raises:
        InputNotFoundError: no such directory.
        InputRefusedError: corrupt, inconsistent or unsafe in one of the ways its subclasses name.
    """
    root = open_root(path, "base")
    config = read_object(confined(root, CONFIG_FILE), constants=True)
    weight_map = _weight_map(root)
    names = [SINGLE_FILE] if weight_map is None else sorted(set(weight_map.values()))
    shards = tuple(read_header(confined(root, name), name=name) for name in names)
    shard_of: dict[str, int] = {}
    for number, shard in enumerate(shards):
        for key in shard.tensors:
            if key in shard_of:
                raise InconsistentCheckpointError(
                    f"the tensor {key} is in two shards, {shards[shard_of[key]].name} and {shard.name}."
                )
            shard_of[key] = number
    if weight_map is not None:
        _check_index(shards, shard_of, weight_map)
    files, left_out = _sort_files(root, shards, shard_of)
    return Checkpoint(
        root=root, config=config, shards=shards, shard_of=shard_of, files=tuple(files), left_out=tuple(left_out)
    )
