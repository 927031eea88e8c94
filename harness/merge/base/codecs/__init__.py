"""Quantised formats, one file each, found by itself: which tensors make up a weight, and its values in plain torch.

A codec is a module with ``FORMATS``, the names that ``--quantization`` takes, and two functions. ``find(base)``
returns the quantised weights among a checkpoint's tensors, by the key that the weight has in the output. It reads
headers alone (and the few bytes of JSON that a format hides in a tensor). ``rows(quantised, read, first, last)``
returns rows ``first:last`` of the weight, taken as a matrix of its last dimension, in float32.
``read(key, start, stop)`` gives bytes of a tensor of the base.

A format is called by the name of its file. Where ``FORMATS`` has other names, such as ``nf4``, each weight has one of
them in ``options["codes"]``. The first line of the module's docstring is what the documentation says of it.

torch is imported where values are made, so that planning needs none. A new format is a new file, and nothing else
changes.
"""

from __future__ import annotations

import pkgutil
from collections.abc import Callable, Mapping
from functools import cache
from importlib import import_module
from typing import TYPE_CHECKING, Protocol, cast

from harness.merge.base.checkpoint import Checkpoint
from harness.merge.base.weight import QuantisedSource

if TYPE_CHECKING:
    import torch

ReadBytes = Callable[[str, int, int], bytearray]
"""Returns the bytes ``[start, stop)`` of the named tensor's data."""


class Codec(Protocol):
    """What a module of this package offers; see the package's own description."""

    FORMATS: tuple[str, ...]
    """What users call the formats that it reads, as ``nf4``."""

    def find(self, base: Checkpoint) -> dict[str, QuantisedSource]:
        """Return the weights of this format by their key in the output.

        Raises:
            InconsistentCheckpointError: a part is missing or has a shape that cannot be.
            UnsupportedBaseError: a variant of the format that is not decoded, by name.
        """
        ...

    def rows(self, quantised: QuantisedSource, read: ReadBytes, first: int, last: int) -> torch.Tensor:
        """Return rows ``first:last`` of a weight in float32, (last - first, columns)."""
        ...


@cache
def codecs() -> Mapping[str, Codec]:
    """Return every codec by name."""
    names = sorted(module.name for module in pkgutil.iter_modules(__path__))
    return {name: cast("Codec", import_module(f"{__name__}.{name}")) for name in names}
