"""Which rows belong to which expert, and which experts are multiplied at once."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass
from functools import cached_property

import torch


@dataclass(frozen=True)
class Run:
    """Experts that have rows, each with the next ones that has any.

    ``experts``: a slice where they are neighbours, else (experts,) int64 on the device.
    ``spans``: first row and end of each; each begins where the one before ends.
    """

    experts: slice | torch.Tensor
    spans: list[tuple[int, int]]

    @property
    def start(self) -> int:
        """The first row."""
        return self.spans[0][0]

    @property
    def end(self) -> int:
        """The end of the rows."""
        return self.spans[-1][1]


@dataclass(frozen=True)
class Groups:
    """Which rows belong to which expert.

    ``ends``: (num_experts,) int32. The rows of expert e end before ``ends[e]``, where those of expert e + 1 begin.
    """

    ends: torch.Tensor

    @cached_property
    def bounds(self) -> list[tuple[int, int]]:
        """First row and end of each expert; waits for the device."""
        ends: list[int] = self.ends.tolist()
        return list(zip([0, *ends[:-1]], ends, strict=True))

    @property
    def sizes(self) -> list[int]:
        """Rows of each expert."""
        return [end - start for start, end in self.bounds]

    @cached_property
    def spans(self) -> list[tuple[int, int, int]]:
        """(expert, first row, end) of each expert that has rows."""
        return [(expert, start, end) for expert, (start, end) in enumerate(self.bounds) if start < end]

    def runs(self, length: int) -> Iterator[Run]:
        """Yield the experts that have rows, in order, ``length`` at once; fewer in the last run."""
        for at in range(0, len(self.spans), length):
            some = self.spans[at : at + length]
            first, last = some[0][0], some[-1][0]
            neighbours = last - first == len(some) - 1
            experts = slice(first, last + 1) if neighbours else self._numbers[at : at + length]
            yield Run(experts, [(start, end) for _, start, end in some])

    @cached_property
    def _numbers(self) -> torch.Tensor:
        """The experts that have rows, (experts,) int64, copied to the device without waiting for it."""
        numbers = torch.tensor([expert for expert, _, _ in self.spans])
        return numbers.to(self.ends.device, non_blocking=True)
