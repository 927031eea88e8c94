"""The arithmetic: deltas added to the base in float32 (or float64), rounded once.

A delta follows PEFT (0.18.0 to 0.21.2): ``peft.tuners.lora.layer.ParamWrapper.get_delta_weight`` for fused parameters,
``Linear.get_delta_weight`` for the rest. Unlike PEFT's it is never rounded to the weight's dtype before it is added.
DoRA follows ``peft.tuners.lora.variants.DoraLinearVariant.merge_unsafe``: each output feature of base + delta is scaled
to its magnitude. It is computed in float64 always: sum, norm, quotient and product would each be rounded in float32.
"""

from __future__ import annotations

import math
from dataclasses import dataclass, field

import torch

from harness.merge.adapter.packing import Factors
from harness.merge.errors import NonFiniteError
from harness.merge.plan.merge_plan import MergePlan, PairContribution, PlanRow, Region, TensorContribution, Term
from harness.merge.write.adapter_values import AdapterValues
from harness.merge.write.buffers import Buffers
from harness.merge.write.checkpoint_values import BaseValues
from harness.merge.write.factored_deltas import FactoredDeltas
from harness.merge.write.tensors import TORCH_DTYPES, all_finite


def delta_sides(
    factors: Factors, contribution: PairContribution, expert: int, start: int, stop: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two matrices whose product, times the scaling, is rows ``start:stop`` of an expert's delta.

    They are lora_B and lora_A, or where the stored weight is the other way round their transposes.
    """
    lora_A, lora_B = factors[0][expert], factors[1][expert]  # noqa: N806 - the field's names
    return (lora_A[:, start:stop].T, lora_B.T) if contribution.swapped else (lora_B[start:stop], lora_A)


def delta_rows(factors: Factors, contribution: PairContribution, expert: int, start: int, stop: int) -> torch.Tensor:
    """Return rows ``start:stop`` of one expert's delta in the coordinates of the stored tensor, scaled, float32."""
    left, right = delta_sides(factors, contribution, expert, start, stop)
    return (left @ right).mul_(contribution.scaling)


@dataclass
class Outcome:
    """What the deltas did to a tensor.

    For values that an adapter replaces, the delta is the difference to the base's. Where the base has none, they count
    in full.

    Attributes:
        nonzero: whether any element of the deltas is non-zero.
        changed: whether any written value differs from the base's.
        squared_norms: the squared Frobenius norms of the delta's parts.
    """

    nonzero: bool = False
    changed: bool = False
    squared_norms: list[float] = field(default_factory=list)

    def add(self, other: Outcome) -> None:
        """Take another part of the same tensor into account; in which order does not matter."""
        self.nonzero |= other.nonzero
        self.changed |= other.changed
        self.squared_norms += other.squared_norms

    @property
    def norm(self) -> float:
        """Frobenius norm of the delta, 0 where all of it is zero.

        The sum is exact, so it does not depend on the order of its parts.
        """
        return math.sqrt(math.fsum(self.squared_norms)) if self.nonzero else 0.0


def round_into(result: torch.Tensor, total: torch.Tensor) -> None:
    """Write ``total`` to ``result``, rounded once to its dtype.

    From float64 torch rounds to float32 first and then again, which misjudges values near a tie. Rounding the first
    time to odd (towards zero, then the last bit set if anything was lost) makes the second one right: Boldo and
    Melquiond, "Emulation of FMA and correctly rounded sums: proved algorithms using rounding to odd", IEEE TC 2008.
    """
    if total.dtype == torch.float64 and result.dtype != torch.float32:
        single = total.to(torch.float32)
        wide = single.double()
        bits = single.view(torch.int32)
        bits -= (wide.abs() > total.abs()).int()
        bits |= (wide != total).int()
        total = single
    result.copy_(total)


def keep_negative_zeros(buffers: Buffers, result: torch.Tensor, before: torch.Tensor) -> None:
    """Make -0.0 of each 0.0 in ``result`` that is -0.0 in ``before``, of the same dtype.

    Zero was added to it, which turned it into 0.0. It is looked for as the least integer: a minimum of integers takes a
    fraction of the sum's time, and hardly any weight is -0.0.
    """
    kind = torch.int32 if result.element_size() == 4 else torch.int16  # noqa: PLR2004 - bytes
    bits, held = result.view(kind), before.view(kind)
    negative = torch.iinfo(kind).min
    if int(held.min()) == negative:
        # Comparisons whose outcome is as wide as what they compare are several times quicker than those that give
        # booleans.
        zero, kept = (buffers.tensor(role, kind, *result.shape) for role in ("zero", "kept"))
        torch.eq(held, negative, out=kept).bitwise_and_(torch.eq(bits, 0, out=zero))
        bits.bitwise_or_(kept.mul_(negative))


class Merger:
    """Values of regions: what a writer calls for each piece of a region, in any order and from any thread.

    ``accumulate``: the dtype of the sum of base and deltas, float32 or float64, DoRA apart.
    """

    def __init__(
        self,
        plan: MergePlan,
        base: BaseValues,
        adapters: AdapterValues,
        deltas: FactoredDeltas,
        accumulate: torch.dtype,
    ) -> None:
        self._plan = plan
        self._base = base
        self._adapters = adapters
        self._deltas = deltas
        self._accumulate = accumulate

    def _is_pairs(self, region: Region) -> bool:
        """Return whether a region is the base plus lora pairs and nothing else, as nearly all are."""
        contributions = [self._plan.contributions[term.contribution] for term in region.terms]
        return region.replacement is None and all(
            isinstance(contribution, PairContribution) and not contribution.magnitude for contribution in contributions
        )

    def _is_scaled(self, region: Region) -> bool:
        """Return whether DoRA scales output features of a region."""
        contributions = (self._plan.contributions[term.contribution] for term in region.terms)
        return any(isinstance(one, PairContribution) and one.magnitude for one in contributions)

    def _rows(self, term: Term, first: int, last: int, columns: int) -> torch.Tensor:
        """Return rows ``first:last`` of a region as one tensor of an adapter has them, as stored."""
        contribution = self._plan.contributions[term.contribution]
        assert isinstance(contribution, TensorContribution)  # noqa: S101 - the caller looked
        return self._adapters.rows(contribution, term, first, last, columns)

    def _add_term(self, total: torch.Tensor, region: Region, term: Term, first: int, last: int) -> None:
        """Add rows ``first:last`` of one term."""
        contribution = self._plan.contributions[term.contribution]
        if isinstance(contribution, TensorContribution):
            rows = self._rows(term, first, last, region.columns).to(total.device, total.dtype)
            total.add_(rows, alpha=contribution.scaling)
        else:
            alone = Region(start=region.start, rows=region.rows, columns=region.columns, terms=(term,))
            self._deltas.add(total, alone, first, last)

    def _scale(self, total: torch.Tensor, term: Term, first: int, last: int) -> None:
        """Scale each output feature of base + delta to DoRA's magnitude."""
        contribution = self._plan.contributions[term.contribution]
        assert isinstance(contribution, PairContribution)  # noqa: S101 - only pairs have a magnitude
        magnitude = self._adapters.magnitude(contribution).to(total.device, total.dtype)
        if contribution.swapped:
            total.mul_(magnitude / torch.linalg.vector_norm(total, dim=0))
        else:
            part = magnitude[term.offset + first : term.offset + last]
            total.mul_((part / torch.linalg.vector_norm(total, dim=1)).unsqueeze(1))

    def _compute(
        self, buffers: Buffers, source: torch.Tensor, region: Region, first: int, last: int
    ) -> tuple[torch.Tensor, list[float]]:
        """Return the exact values of rows ``first:last``, and the squared norms known by then."""
        dtype = torch.float64 if self._is_scaled(region) else self._accumulate
        total = buffers.work("sum", dtype, *source.shape)
        total.copy_(source)
        if self._is_pairs(region):
            self._deltas.add(total, region, first, last)
            # The norm of a whole region costs little, and is counted with its first piece.
            return total, [self._deltas.squared_norm(region)] if first == 0 else []
        for term in region.terms:
            self._add_term(total, region, term, first, last)
        for term in region.terms:
            if (
                isinstance(contribution := self._plan.contributions[term.contribution], PairContribution)
                and contribution.magnitude
            ):
                self._scale(total, term, first, last)
        return total, []

    def values(
        self, buffers: Buffers, row: PlanRow, region: Region, first: int, last: int
    ) -> tuple[memoryview, Outcome]:
        """Return the bytes of rows ``first:last`` of a region of ``row``, and what the adapters did to them.

        The bytes are valid until the next call with the same ``buffers``. A value that does not change keeps the base's
        own bits.

        Raises:
            NonFiniteError: NaN or infinity in the base, or a result that does not fit the dtype.
        """
        dtype, shape = TORCH_DTYPES[row.dtype], (last - first, region.columns)
        start = region.start + first * region.columns
        base = None if row.source is None else self._base.rows(buffers, row.source, start, *shape)
        source = base if region.replacement is None else self._rows(region.replacement, first, last, region.columns)
        assert source is not None  # noqa: S101 - a row without a source is replaced in full
        total, norms = self._compute(buffers, source, region, first, last)
        result = buffers.tensor("out", dtype, *shape)
        round_into(result, total)
        if not all_finite(result):
            where = (
                "the base holds NaN or infinity"
                if base is not None and not all_finite(base)
                else f"the result does not fit {dtype}"
            )
            raise NonFiniteError(f"{row.key}: {where}.")
        before = source.to(dtype)
        keep_negative_zeros(buffers, result, before)
        kept = before if source is base else None if base is None else base.to(dtype)
        changed = kept is None or not torch.equal(result, kept)
        if not self._is_pairs(region):
            before = torch.zeros_like(total) if base is None else base.to(total.device)
            norms = [float(torch.linalg.vector_norm(total.double() - before.double())) ** 2]
            if not math.isfinite(norms[0]) and not all_finite(before):
                raise NonFiniteError(f"{row.key}: the base holds NaN or infinity.")
        nonzero = changed or (norms != [0.0] if not self._is_pairs(region) else self._any(total, region, first, last))
        if not changed and kept is not None:
            result.copy_(kept)
        return buffers.bytes_of("out", result.numel() * dtype.itemsize), Outcome(nonzero, changed, norms)

    def _any(self, total: torch.Tensor, region: Region, first: int, last: int) -> bool:
        """Return whether any element of the deltas is non-zero, by computing them into ``total``."""
        self._deltas.add(total.zero_(), region, first, last)
        return bool(total.any())

    def kept(self, buffers: Buffers, row: PlanRow, start: int, elements: int) -> memoryview:
        """Return the bytes of elements of ``row`` that no region covers, from element ``start`` on, in its dtype.

        Raises:
            NonFiniteError: NaN or infinity in the base, or a value that does not fit the dtype.
        """
        assert row.source is not None  # noqa: S101 - a row without a source is replaced in full
        base = self._base.rows(buffers, row.source, start, elements, 1)
        dtype = TORCH_DTYPES[row.dtype]
        result = buffers.tensor("out", dtype, elements, 1)
        result.copy_(base)
        if not all_finite(result):
            raise NonFiniteError(f"{row.key}: the base holds NaN or infinity, or does not fit {dtype}.")
        return buffers.bytes_of("out", elements * dtype.itemsize)
