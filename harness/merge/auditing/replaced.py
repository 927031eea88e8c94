"""Rows that the adapter holds whole (a fully trained module, a trained token, a bias) against the merged checkpoint.

There is no arithmetic between them. The merged values are the adapter's, rounded to the merged dtype, or they are not.
An engine that loads the model in another dtype rounds to that first. Both ways count.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch

from harness.merge.auditing.equality import NON_FINITE, broken


@dataclass(slots=True)
class Replaced:
    """What was seen over the rows of one slice.

    Attributes:
        load: the dtype that the model is loaded in.
        finite: nothing became NaN or infinite.
        exact: how many elements equal the adapter's, rounded once.
        right: all of them do.
        through_load: all equal the adapter's, rounded to ``load`` first.
        kept: all equal the base's.
        same: the adapter's are the base's in value.
        vanishes_once: they are once rounded.
        vanishes_twice: they are once rounded by way of ``load``.
    """

    load: torch.dtype
    finite: bool = True
    elements: int = 0
    exact: int = 0
    right: bool = True
    through_load: bool = True
    kept: bool = True
    same: bool = True
    vanishes_once: bool = True
    vanishes_twice: bool = True

    def add(self, base: torch.Tensor | None, merged: torch.Tensor, wanted: torch.Tensor) -> None:
        """Take further rows into account; all are (rows, columns), each in its own dtype.

        The base may have none: a resized vocabulary.
        """
        once, twice = wanted.to(merged.dtype), wanted.to(self.load).to(merged.dtype)
        self.finite = self.finite and not broken(merged, wanted)
        self.elements += merged.numel()
        self.exact += int((merged == once).sum())
        self.right = self.right and torch.equal(merged, once)
        self.through_load = self.through_load and torch.equal(merged, twice)
        if base is None:
            self.kept = False
            return
        kept = base.to(merged.dtype)
        self.kept = self.kept and torch.equal(merged, kept)
        self.same = self.same and torch.equal(wanted.double(), base.double())
        self.vanishes_once = self.vanishes_once and torch.equal(once, kept)
        self.vanishes_twice = self.vanishes_twice and torch.equal(twice, kept)

    def verdict(self) -> tuple[str, str]:
        """Return (verdict, detail) as for a slice of a delta."""
        if self.finite and self.kept:
            if self.same:
                return "indistinguishable", "zero-delta"
            if self.vanishes_once or self.vanishes_twice:
                return "indistinguishable", "below-rounding"
            return "untouched", "still the base"
        if self.finite and (self.right or self.through_load):
            return "applied", "bit-exact" if self.right else "low-precision"
        return "wrong", "neither the base's values nor those that the adapter holds" if self.finite else NON_FINITE
