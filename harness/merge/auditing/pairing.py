"""Where the contents of each tensor of the base are in the merged checkpoint, whatever the names it was saved under.

Three renamings mean the same to every reader and are compared through: another prefix of the language model (``model.``
and ``model.language_model.``), experts fused into one 3D tensor that were one Linear each, and the reverse. Each base
tensor becomes runs of elements (``Piece``), contiguous on both sides, so that the comparison itself knows nothing of
names.
"""

from __future__ import annotations

from collections.abc import Collection, Iterator, Mapping
from dataclasses import dataclass
from math import prod

from harness.merge.auditing.merged_checkpoint import MergedCheckpoint
from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.families import family_of
from harness.merge.base.names import PARTS, TEXT_PREFIXES, ExpertKeys, common, expert_keys, expert_module, split
from harness.merge.errors import UnsupportedBaseError

FUSED_NDIM = 3
HEAD_PREFIXES = ("", "language_model.", "model.")


@dataclass(frozen=True, slots=True, kw_only=True)
class Piece:
    """A run of ``count`` elements: from ``start`` of the base tensor, from ``merged_start`` of the merged tensor
    ``merged_key``.
    """

    start: int
    count: int
    merged_key: str
    merged_start: int


@dataclass(frozen=True, slots=True, kw_only=True)
class Pairing:
    """Where one base tensor is.

    ``rename`` names the equivalence when the key is another one; ``problem`` says why it cannot be compared.
    """

    pieces: tuple[Piece, ...] = ()
    rename: str | None = None
    problem: str | None = None

    @property
    def found(self) -> bool:
        """Whether the merged checkpoint has the tensor under some name, in a shape that fits."""
        return bool(self.pieces)

    @property
    def keys(self) -> tuple[str, ...]:
        """The merged checkpoint's names of it."""
        return tuple(dict.fromkeys(piece.merged_key for piece in self.pieces))


def _prefixed(path: str) -> tuple[str, ...]:
    """Return a path of the decoder under every text prefix, or any other path as it is."""
    parts = split(path)
    return tuple(f"{prefix}{parts[1]}" for prefix in TEXT_PREFIXES) if parts else (path,)


def names_of(key: str) -> Iterator[str]:
    """Yield the names that ``key`` may have on disk, itself first."""
    yield key
    for suffix in (".weight", ".bias", ""):
        stem = key.removesuffix(suffix) if suffix else key
        if not key.endswith(suffix):
            continue
        if stem.rpartition(".")[2] == "lm_head":
            yield from (f"{prefix}lm_head{suffix}" for prefix in HEAD_PREFIXES)
        else:
            yield from (f"{candidate}{suffix}" for candidate in _prefixed(stem))
        return


class Pairer:
    """The keys that a right merge would have, with their shapes, and those of the merged checkpoint, indexed once."""

    def __init__(self, base: Checkpoint, shapes: Mapping[str, tuple[int, ...]], merged: MergedCheckpoint) -> None:
        self.base = base
        self.shapes = shapes
        self.merged = merged
        self.family = family_of(base.config)
        self.experts: dict[str, ExpertKeys] = expert_keys((common(key, self.family), key) for key in merged.shard_of)

    def pair(self, key: str) -> Pairing:
        """Return where the tensor ``key`` is in the merged checkpoint."""
        shape = self.shapes[key]
        for name in names_of(key):
            if name in self.merged:
                return self._whole(key, name, shape)
        return self._expert(key, shape) or self._tied(key) or Pairing()

    def stored_twice(self, unexpected: Collection[str]) -> list[str]:
        """Return the tensors that the base lacks and that are another form, or name, of one that it has."""
        twice = {key for key in unexpected if any(name in self.shapes for name in names_of(key))}
        for stored in self.experts.values():
            forms = set(stored.fused.values()), {key for linears in stored.linears.values() for key in linears.values()}
            for form, other in (forms, forms[::-1]):
                if other - set(unexpected):
                    twice |= form & set(unexpected)
        return sorted(twice)

    def _whole(self, key: str, name: str, shape: tuple[int, ...]) -> Pairing:
        rename = None if name == key else _prefix_rename(key, name)
        found = self.merged.info(name).shape
        if found != shape:
            turned = found == (*shape[:-2], shape[-1], shape[-2]) if len(shape) > 1 else False
            problem = f"shape {list(found)} instead of {list(shape)}{': stored transposed' if turned else ''}"
            return Pairing(rename=rename, problem=problem)
        return Pairing(pieces=(Piece(start=0, count=prod(shape), merged_key=name, merged_start=0),), rename=rename)

    def _expert(self, key: str, shape: tuple[int, ...]) -> Pairing | None:
        """Pair an expert tensor with the other form of storing it."""
        spelling = common(key, self.family)
        path, _, parameter = spelling.rpartition(".")
        if parameter in PARTS and len(shape) == FUSED_NDIM:
            return self._unfused(path, parameter, shape)
        single = expert_module(spelling.removesuffix(".weight")) if spelling.endswith(".weight") else None
        if single is None:
            return None
        path, expert, leaf = single
        for name, parts in PARTS.items():
            if leaf in parts:
                return self._fused(path, name, expert, parts.index(leaf), shape)
        return None

    def _check_turned(self, name: str) -> None:
        """Refuse the other form of experts where the fused one is (num_experts, in, out): how halves interleave is not
        assumed.

        Raises:
            UnsupportedBaseError: names the tensor.
        """
        if self.family.transposed:
            raise UnsupportedBaseError(
                f"{name}: this model type stores fused experts transposed, and the audit does not compare them with"
                " experts stored one by one."
            )

    def _unfused(self, path: str, parameter: str, shape: tuple[int, ...]) -> Pairing | None:
        """Pair a fused base tensor with one merged Linear per expert and part."""
        stored, parts = self.experts.get(path), PARTS[parameter]
        if stored is None or not any(part in stored.linears for part in parts):
            return None
        self._check_turned(f"{path}.{parameter}")
        rows = shape[1] // len(parts)
        pieces: list[Piece] = []
        for expert in range(shape[0]):
            for number, part in enumerate(parts):
                name = stored.linears.get(part, {}).get(expert)
                if name is None:
                    return Pairing(problem=f"expert {expert} has no {part}")
                if self.merged.info(name).shape != (rows, shape[2]):
                    return Pairing(problem=f"{name} has shape {list(self.merged.info(name).shape)}")
                start = (expert * shape[1] + number * rows) * shape[2]
                pieces.append(Piece(start=start, count=rows * shape[2], merged_key=name, merged_start=0))
        return Pairing(pieces=tuple(pieces), rename="fused experts stored as one tensor per expert")

    def _fused(self, path: str, parameter: str, expert: int, part: int, shape: tuple[int, ...]) -> Pairing | None:
        """Pair one base Linear with its slice of a fused merged tensor."""
        stored = self.experts.get(path)
        name = stored.fused.get(parameter) if stored else None
        if name is None:
            return None
        self._check_turned(name)
        found, parts = self.merged.info(name).shape, len(PARTS[parameter])
        if len(found) != FUSED_NDIM or found[1:] != (shape[0] * parts, shape[1]) or expert >= found[0]:
            return Pairing(problem=f"{name} has shape {list(found)}")
        start = (expert * found[1] + part * shape[0]) * shape[1]
        piece = Piece(start=0, count=prod(shape), merged_key=name, merged_start=start)
        return Pairing(pieces=(piece,), rename="one tensor per expert stored as fused experts")

    def _tied(self, key: str) -> Pairing | None:
        """Pair a tied lm_head that was not written with the embedding that it is."""
        if not key.endswith("lm_head.weight") or not self.base.ties_word_embeddings:
            return None
        embedding = next((name for name in self.merged.shard_of if name.endswith("embed_tokens.weight")), None)
        if embedding is None or self.merged.info(embedding).shape != self.shapes[key]:
            return None
        count = prod(self.shapes[key])
        piece = Piece(start=0, count=count, merged_key=embedding, merged_start=0)
        return Pairing(pieces=(piece,), rename="tied lm_head.weight left out")


def _prefix_rename(key: str, name: str) -> str:
    """Return ``model.language_model.* stored as model.*`` for two names of one tensor."""
    return f"{_prefix(key)}* stored as {_prefix(name)}*"


def _prefix(key: str) -> str:
    stem = key.removesuffix(".weight").removesuffix(".bias")
    parts = split(stem)
    return parts[0] if parts else stem.removesuffix("lm_head")
