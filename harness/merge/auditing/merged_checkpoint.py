"""The merged checkpoint as its headers and index describe it: somebody's output, so faults are found, not refused.

A base that contradicts itself is refused (``harness.merge.base.checkpoint``), because nothing could be concluded from
it. Here the contradiction is the finding: a shard that the index does not name, a tensor that it promises and no shard
holds. Only what cannot be read at all (a corrupt header, a pickle, a link out of the directory) ends the audit.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from harness.merge.adapter.adapter import ADAPTER_CONFIG
from harness.merge.base.checkpoint import INDEX_FILE, SINGLE_FILE
from harness.merge.errors import InconsistentCheckpointError, UnsafeFormatError, UsageError, listed
from harness.merge.files.confine import check_name, confined, open_root, walk_files
from harness.merge.files.json_file import read_object
from harness.merge.files.safetensors_file import TensorFile, TensorInfo, read_header

PICKLES = (".bin", ".pt", ".pth", ".ckpt")


@dataclass(frozen=True, kw_only=True)
class MergedCheckpoint:
    """What the merged directory holds.

    ``shard_of`` gives the shard of each tensor that a reader would find; ``files`` are the relative paths of all files;
    ``problems`` says in words where index and shards disagree.
    """

    root: Path
    shards: tuple[TensorFile, ...]
    shard_of: Mapping[str, int]
    files: frozenset[str]
    problems: tuple[str, ...]

    def info(self, key: str) -> TensorInfo:
        """Return the header entry of the tensor ``key``."""
        return self.shards[self.shard_of[key]].tensors[key]

    def __contains__(self, key: str) -> bool:
        return key in self.shard_of


def _weight_map(root: Path) -> dict[str, str] | None:
    if not (root / INDEX_FILE).exists():
        return None
    weight_map = read_object(confined(root, INDEX_FILE)).get("weight_map")
    if not isinstance(weight_map, dict) or not all(isinstance(name, str) for name in weight_map.values()):
        raise InconsistentCheckpointError(f"{INDEX_FILE} of the merged checkpoint has no weight_map.")
    for name in set(weight_map.values()):
        check_name(name, INDEX_FILE)
    return weight_map


def _shard_names(weight_map: Mapping[str, str] | None, files: frozenset[str]) -> tuple[list[str], list[str]]:
    """Return the names of the shards that a reader would open, and what is odd about them."""
    present = sorted(name for name in files if name.endswith(".safetensors") and "/" not in name)
    if weight_map is None:
        if SINGLE_FILE in files:
            return [SINGLE_FILE], []
        if not present:
            pickles = [name for name in files if name.endswith(PICKLES)]
            if pickles:
                raise UnsafeFormatError(
                    f"the merged checkpoint's weights are pickles ({listed(pickles)}), which run code when they are"
                    " read.",
                    "Save it as safetensors, then audit.",
                )
            raise InconsistentCheckpointError(f"the merged directory holds no {SINGLE_FILE} and no {INDEX_FILE}.")
        return present, [f"{INDEX_FILE} is missing: nothing says which tensors the shards should hold"]
    named = sorted({name for name in weight_map.values() if name.endswith(".safetensors")})
    absent = [name for name in named if name not in files]
    problems = [f"{INDEX_FILE} names {name}, which is not there" for name in absent]
    if SINGLE_FILE in files and SINGLE_FILE not in named:
        problems.append(
            f"{SINGLE_FILE} lies beside an {INDEX_FILE} that does not name it; libraries disagree on which counts"
        )
    return [name for name in named if name in files], problems


def open_merged(path: Path) -> MergedCheckpoint:
    """Return the merged checkpoint in a directory.

    Raises:
        InputNotFoundError: no such directory.
        UsageError: it is an adapter's.
        InputRefusedError: it cannot be read safely, or holds no weights.
    """
    root = open_root(path, "merged checkpoint")
    files = frozenset(walk_files(root))
    if ADAPTER_CONFIG in files and not files & {SINGLE_FILE, INDEX_FILE}:
        raise UsageError(
            f"{path} holds an adapter ({ADAPTER_CONFIG}), not a merged checkpoint.",
            "Give the adapter as --adapter, and the directory that the merge wrote as --merged.",
        )
    weight_map = _weight_map(root)
    names, problems = _shard_names(weight_map, files)
    shards = tuple(read_header(confined(root, name), name=name) for name in names)
    shard_of: dict[str, int] = {}
    twice: list[str] = []
    for number, shard in enumerate(shards):
        for key in shard.tensors:
            if key in shard_of:
                twice.append(key)
            # A reader that follows the index takes the copy that it names.
            if key not in shard_of or (weight_map is not None and weight_map.get(key) == shard.name):
                shard_of[key] = number
    if twice:
        problems.append(f"tensors in more than one shard: {listed(set(twice))}")
    if weight_map is not None:
        problems += _index_problems(weight_map, shards, shard_of)
    return MergedCheckpoint(root=root, shards=shards, shard_of=shard_of, files=files, problems=tuple(problems))


def _index_problems(
    weight_map: Mapping[str, str], shards: tuple[TensorFile, ...], shard_of: Mapping[str, int]
) -> list[str]:
    absent = [key for key in weight_map if key not in shard_of]
    unknown = [key for key in shard_of if key not in weight_map]
    moved = [key for key, shard in shard_of.items() if key in weight_map and weight_map[key] != shards[shard].name]
    told = (
        (absent, "names tensors that no shard holds"),
        (unknown, "does not name tensors that the shards hold"),
        (moved, "places tensors in other shards than they are in"),
    )
    return [f"{INDEX_FILE} {problem}: {listed(keys)}" for keys, problem in told if keys]
