"""A checkpoint's weights by the names that an architecture knows them by, in float64, with what an adapter adds."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from harness.definitions.files import read_tensors
from harness.definitions.parts import Array

PREFIXES = ("model.language_model.", "model.")
"""Before the names of a model's tensors; the first that fits."""
HEAD = "lm_head."


DIGITS = {"float32": 24, "bf16": 8}
"""Binary digits of a dtype's numbers, the first one included."""


def rounded(values: Array, digits: int) -> Array:
    """Return values rounded to so many binary digits, ties to the even one. They are taken to be normal numbers."""
    fraction, exponent = np.frexp(values)
    return np.ldexp(np.rint(np.ldexp(fraction, digits)), exponent - digits)


def grown(tensor: Array, rows: int) -> Array:
    """Return a tensor with rows of zeros below it, so that it has so many: those of a larger vocabulary."""
    missing = rows - len(tensor)
    return np.concatenate([tensor, np.zeros((missing, *tensor.shape[1:]))]) if missing > 0 else tensor


def _ties(directory: Path) -> bool:
    """Say whether a checkpoint's embeddings are its head too."""
    path = directory / "config.json"
    return path.exists() and bool(json.loads(path.read_text(encoding="utf-8")).get("tie_word_embeddings"))


@dataclass(frozen=True, kw_only=True)
class Deltas:
    """What an adapter adds.

    Attributes:
        linears: ``layers.0.self_attn.q_proj`` → (out, in), and ``layers.0.self_attn.q_proj.bias`` → (out,).
        fused: ``layers.0.mlp.experts``, ``gate_up_proj`` → (experts, out, in).
    """

    linears: Mapping[str, Array] = field(default_factory=dict)
    fused: Mapping[tuple[str, str], Array] = field(default_factory=dict)

    def plus(self, other: Deltas) -> Deltas:
        """Return what both adapters add together."""
        return Deltas(linears=_sums(self.linears, other.linears), fused=_sums(self.fused, other.fused))


def _sums(first: Mapping[Any, Array], second: Mapping[Any, Array]) -> dict[Any, Array]:
    sums = dict(first)
    for name, delta in second.items():
        sums[name] = sums[name] + delta if name in sums else delta
    return sums


@dataclass(frozen=True, kw_only=True)
class Weights:
    """Weights by name without the checkpoint's prefix: ``layers.0.self_attn.q_proj.weight``, ``lm_head.weight``.

    Attributes:
        stored: what the files hold, in float64.
        deltas: what is added.
        digits: binary digits that a sum is rounded to; None: it is not.
    """

    stored: Mapping[str, Array]
    deltas: Deltas = Deltas()
    digits: int | None = None

    @classmethod
    def read(cls, directory: Path) -> Weights:
        """Read every tensor of a checkpoint's safetensors files."""
        found: dict[str, Array] = {}
        for path in sorted(directory.glob("*.safetensors")):
            found |= read_tensors(path)
        prefix = next(prefix for prefix in PREFIXES if f"{prefix}embed_tokens.weight" in found)
        stored = {name.removeprefix(prefix): value for name, value in found.items() if name.startswith((prefix, HEAD))}
        if f"{HEAD}weight" not in stored and _ties(directory):
            stored[f"{HEAD}weight"] = stored["embed_tokens.weight"]
        return cls(stored=stored)

    def plus(self, deltas: Deltas, *, rounded_to: str | None = None) -> Weights:
        """Return these weights with what an adapter adds, each sum rounded once to a dtype where one is given."""
        return Weights(stored=self.stored, deltas=deltas, digits=None if rounded_to is None else DIGITS[rounded_to])

    def _sum(self, stored: Array, delta: Array | None) -> Array:
        if delta is None:
            return stored
        stored = grown(stored, len(delta))
        return stored + delta if self.digits is None else rounded(stored + delta, self.digits)

    def __getitem__(self, name: str) -> Array:
        """Return a tensor, with its delta.

        Raises:
            KeyError: there is none of that name.
        """
        return self._sum(self.stored[name], self.deltas.linears.get(name.removesuffix(".weight")))

    def mlp(self, path: str) -> tuple[Array, Array, Array]:
        """Return gate, up and down of the MLP at ``path``."""
        return self[f"{path}.gate_proj.weight"], self[f"{path}.up_proj.weight"], self[f"{path}.down_proj.weight"]

    def experts(self, path: str) -> tuple[Array, Array, Array]:
        """Return gate and up (experts, inner, hidden) and down (experts, hidden, inner), however they lie on disk."""
        if f"{path}.gate_up_proj" in self.stored:
            both, down = self.stored[f"{path}.gate_up_proj"], self.stored[f"{path}.down_proj"]
        else:
            one_by_one = [self.mlp(f"{path}.{e}") for e in range(self.count(path))]
            both = np.stack([np.concatenate([gate, up]) for gate, up, _ in one_by_one])
            down = np.stack([down for _, _, down in one_by_one])
        both = self._sum(both, self.deltas.fused.get((path, "gate_up_proj")))
        down = self._sum(down, self.deltas.fused.get((path, "down_proj")))
        inner = down.shape[2]
        return both[:, :inner], both[:, inner:], down

    def count(self, path: str) -> int:
        """Return how many experts there are at ``path``."""
        if f"{path}.gate_up_proj" in self.stored:
            return int(self.stored[f"{path}.gate_up_proj"].shape[0])
        return sum(name.startswith(f"{path}.") and name.endswith(".down_proj.weight") for name in self.stored)
