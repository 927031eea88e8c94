"""Which other expert's delta, or weights, a slice may hold: a few rows of every expert, compared with all at once.

Only candidates come from here, the likeliest first. The rows of a layer's experts are read once, however many of its
slices failed. So a layer that is wrong throughout costs as many readings as it has experts, and not their square.
"""

from __future__ import annotations

import threading
from collections import OrderedDict
from collections.abc import Hashable, Mapping
from dataclasses import dataclass

import torch

from harness.merge.auditing.slices import Siblings, Slice
from harness.merge.auditing.source import Source

ELEMENTS = 1 << 13
"""Elements that experts are compared on: random directions reach a cosine of 0.01, and the best of hundreds 0.04."""
LIKELIEST = 4
"""Candidates that are looked at more closely."""
KEPT = 6
"""Groups of experts that are kept: gate, up and down of two layers, 16 MiB each where there are 256 experts."""


@dataclass(frozen=True, slots=True, kw_only=True)
class Fingerprint:
    """The same rows of each expert, (experts, elements), each of length one: its delta, and its base + delta.

    ``numbers`` are the experts'.
    """

    numbers: tuple[int, ...]
    deltas: torch.Tensor
    weights: torch.Tensor

    def likeliest(self, item: Slice, base: torch.Tensor, merged: torch.Tensor) -> tuple[list[int], list[int]]:
        """Return the other experts whose delta, and those whose merged weights, the slice's rows are nearest to.

        The nearest come first.
        """
        moved = (merged.float() - base.float()).flatten()
        scores = ((self.deltas @ moved).abs(), self.weights @ merged.float().flatten())
        deltas, weights = (
            [self.numbers[place] for place in score.nan_to_num(0.0).argsort(descending=True)[: LIKELIEST + 1].tolist()]
            for score in scores
        )
        own = item.number
        return [one for one in deltas if one != own][:LIKELIEST], [one for one in weights if one != own][:1]


class Fingerprints:
    """The last few groups' fingerprints, shared by threads."""

    def __init__(self, siblings: Siblings) -> None:
        self._siblings = siblings
        self._kept: OrderedDict[Hashable, Fingerprint] = OrderedDict()
        self._lock = threading.Lock()

    def of(self, item: Slice, first: int, last: int, source: Source) -> Fingerprint:
        """Return the fingerprint of rows ``first:last`` of a slice's siblings and itself."""
        wanted = (self._siblings.group(item), first, last)
        with self._lock:
            if wanted not in self._kept:
                self._kept[wanted] = _made(self._siblings.of(item), first, last, source)
                if len(self._kept) > KEPT:
                    self._kept.popitem(last=False)
            self._kept.move_to_end(wanted)
            return self._kept[wanted]


def _made(group: Mapping[int, Slice], first: int, last: int, source: Source) -> Fingerprint:
    shape = (len(group), (last - first) * next(iter(group.values())).columns)
    deltas, weights = torch.empty(shape), torch.empty(shape)
    for place, other in enumerate(group.values()):
        deltas[place] = source.delta_rows(other, first, last).flatten()
        weights[place] = source.base_rows(other, first, last).flatten()
        weights[place] += deltas[place]
    # A delta that is zero stays so.
    normalize = torch.nn.functional.normalize
    return Fingerprint(numbers=tuple(group), deltas=normalize(deltas), weights=normalize(weights))
