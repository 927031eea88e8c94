"""Deltas kept factored: for each lora pair the two factors whose product is the delta, and the norms that follow.

A pair is decoded once and kept in the dtype that it is stored in: a bf16 adapter costs what it costs on disk. It is
dropped when the last row that needs it is done. The rows of a layer lie together in a checkpoint, so few pairs are held
at once, and none is ever read twice.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable
from dataclasses import dataclass, field
from threading import Lock

import torch

from harness.merge.plan.merge_plan import MergePlan, PairContribution, Region
from harness.merge.write.adapter_values import AdapterValues, split_experts

TOGETHER = 32
"""Experts whose norms are worked out in one operation."""


@dataclass(frozen=True, kw_only=True)
class FactoredDelta:
    """One pair in the coordinates of the stored tensor: the delta of expert e is ``scaling * left[e] @ right[e]``.

    ``left``: (num_experts, rows, rank), ``right``: (num_experts, rank, columns), both as stored in the adapter.
    """

    left: torch.Tensor
    right: torch.Tensor
    scaling: float
    _norms: dict[tuple[int, int], list[float]] = field(default_factory=dict)

    def squared_norms(self, offset: int, rows: int) -> list[float]:
        """Return, for each expert, the squared Frobenius norm of some rows of its delta, in float64.

        ``||L R||² = sum((LᵀL) ∘ (RRᵀ))``, so that the rows are not made. All experts at once, because one by one it
        would cost as much as adding the deltas.
        """
        if (offset, rows) not in self._norms:
            parts = zip(self.left[:, offset : offset + rows].split(TOGETHER), self.right.split(TOGETHER), strict=True)
            grams = [(_gram(left.mT), _gram(right)) for left, right in parts]
            norms = torch.cat([(first * second).sum((1, 2)) for first, second in grams]) * self.scaling**2
            self._norms[offset, rows] = norms.clamp_(min=0).tolist()
        return self._norms[offset, rows]


def _gram(matrices: torch.Tensor) -> torch.Tensor:
    """Return the products of the rows of each matrix with each other, (experts, rank, rank), float64."""
    wide = matrices.double()
    return wide @ wide.mT


class FactoredDeltas:
    """The pairs of a plan as products, on one device; shared by threads.

    ``expect`` says what will be computed; each pair is read when first needed and kept until ``done`` was called for
    all of that.
    """

    def __init__(self, plan: MergePlan, adapters: AdapterValues, device: torch.device) -> None:
        self._plan = plan
        self._adapters = adapters
        self._device = device
        self._kept: dict[int, FactoredDelta] = {}
        self._rows_left: Counter[int] = Counter()
        self._lock = Lock()

    def expect(self, regions: Iterable[Region]) -> None:
        """Announce regions, all of whose rows will be computed once."""
        with self._lock:
            for region in regions:
                for term in region.terms:
                    self._rows_left[term.contribution] += region.rows

    def done(self, region: Region, rows: int) -> None:
        """Say that some rows of a region are computed."""
        with self._lock:
            for term in region.terms:
                self._rows_left[term.contribution] -= rows
                if self._rows_left[term.contribution] <= 0:
                    self._kept.pop(term.contribution, None)

    def of(self, number: int) -> FactoredDelta:
        """Return contribution ``number`` of the plan, which is a pair."""
        with self._lock:
            if number not in self._kept:
                self._kept[number] = self._read(number)
            return self._kept[number]

    def _read(self, number: int) -> FactoredDelta:
        contribution = self._plan.contributions[number]
        assert isinstance(contribution, PairContribution)  # noqa: S101 - the caller looked
        first, second = (
            self._adapters.read(contribution.adapter, info)
            for info in (contribution.pair.lora_A, contribution.pair.lora_B)
        )
        lora_a, lora_b = (factor.to(self._device) for factor in split_experts(first, second, contribution))
        if self._device.type == "cuda":
            torch.cuda.current_stream(self._device).synchronize()  # other threads use them in streams of their own
        if contribution.swapped:
            return FactoredDelta(left=lora_a.mT, right=lora_b.mT, scaling=contribution.scaling)
        return FactoredDelta(left=lora_b, right=lora_a, scaling=contribution.scaling)

    def add(self, total: torch.Tensor, region: Region, first: int, last: int) -> None:
        """Add rows ``first:last`` of the deltas of a region, all of whose terms are pairs, to ``total`` (rows,
        columns), in its dtype.
        """
        for term in region.terms:
            product, expert = self.of(term.contribution), term.expert or 0
            left = product.left[expert, term.offset + first : term.offset + last].to(total.dtype)
            total.addmm_(left, product.right[expert].to(total.dtype), alpha=product.scaling)

    def squared_norm(self, region: Region) -> float:
        """Return the squared Frobenius norm of the sum of a region's deltas, in float64.

        A sum of products is the product of the factors side by side.
        """
        if len(region.terms) == 1:
            (term,) = region.terms
            product = self.of(term.contribution)
            with self._lock:
                return product.squared_norms(term.offset, region.rows)[term.expert or 0]
        lefts, rights = [], []
        for term in region.terms:
            product, expert = self.of(term.contribution), term.expert or 0
            rows = product.left[expert, term.offset : term.offset + region.rows]
            lefts.append(rows.double() * product.scaling)
            rights.append(product.right[expert].double())
        side_by_side = FactoredDelta(left=torch.cat(lefts, dim=1)[None], right=torch.cat(rights)[None], scaling=1.0)
        return side_by_side.squared_norms(0, region.rows)[0]
