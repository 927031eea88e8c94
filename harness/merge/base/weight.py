"""One weight of a base: what it is called, how large it is, and which tensors on disk it is made of."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field


@dataclass(frozen=True, slots=True, kw_only=True)
class PlainSource:
    """A weight that is one plain tensor of the base."""

    key: str

    @property
    def keys(self) -> tuple[str, ...]:
        """The tensors of the base that it is made of."""
        return (self.key,)


@dataclass(frozen=True, kw_only=True)
class QuantisedSource:
    """A quantised weight.

    Attributes:
        codec: the format's name, a module in ``codecs``.
        parts: the tensors of the base by their role in it.
        shape: the weight's.
        options: what else decoding needs. ``codes`` is what its values are called where that is not the codec's name:
            ``nf4``, ``int8``.
    """

    codec: str
    parts: Mapping[str, str]
    shape: tuple[int, ...]
    options: Mapping[str, object] = field(default_factory=dict)

    @property
    def keys(self) -> tuple[str, ...]:
        """The tensors of the base that it is made of."""
        return tuple(self.parts.values())


@dataclass(frozen=True, slots=True, kw_only=True)
class Weight:
    """One weight: its key, shape and dtype (the format's name) in the output, its shard, and what it is made of."""

    key: str
    shape: tuple[int, ...]
    dtype: str
    shard: int
    source: PlainSource | QuantisedSource
