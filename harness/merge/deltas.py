"""The arithmetic: deltas in float32, added to the base in float32, rounded once.

A delta follows ``peft.tuners.lora.layer.ParamWrapper.get_delta_weight`` (0.18.0 to 0.21.2) for fused parameters and
``Linear.get_delta_weight`` for the rest, but is never rounded to the weight's dtype before it is added, as PEFT's is. DoRA follows
``peft.tuners.lora.variants.DoraLinearVariant.merge_unsafe``: each output feature of base + delta is scaled to its magnitude.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch

from harness.merge.errors import NonFiniteError
from harness.merge.records import MergePlan, PairUse, PlanRow, Region, TensorUse, Term
from harness.merge.sources import TORCH_DTYPES, AdapterValues, BaseValues, all_finite

CHUNK_ELEMENTS = 4 * 1024 * 1024
"""Elements handled at once, so that a large matrix (lm_head) costs no more memory than an expert."""


def bytes_of(tensor: torch.Tensor, buffer: bytearray) -> bytearray:
    """Return the bytes of a tensor, in ``buffer`` where they fit exactly: usually that of the base it was computed from."""
    size = tensor.numel() * tensor.element_size()
    target = buffer if len(buffer) == size else bytearray(size)
    torch.frombuffer(target, dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return target


def delta_rows(
    factors: tuple[torch.Tensor, torch.Tensor], use: PairUse, expert: int, start: int, stop: int
) -> torch.Tensor:
    """Return rows ``start:stop`` of one expert's delta in the coordinates of the stored tensor, float32: lora_B_e @ lora_A_e, or its transpose."""
    lora_A, lora_B = factors[0][expert], factors[1][expert]  # noqa: N806 - the field's names
    product = lora_A[:, start:stop].T @ lora_B.T if use.swapped else lora_B[start:stop] @ lora_A
    return product.mul_(use.scaling)


@dataclass
class Outcome:
    """What the deltas of one region did: whether any element of them is non-zero, whether any written value differs, their squared norm.

    For values that an adapter replaces, the delta is the difference to the base's; where the base has none, they count in full.
    """

    nonzero: bool = False
    changed: bool = False
    squared_norm: float = 0.0

    def add(self, other: Outcome) -> None:
        """Take another part of the same tensor into account."""
        self.nonzero |= other.nonzero
        self.changed |= other.changed
        self.squared_norm += other.squared_norm


def add_delta(base: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype, key: str) -> tuple[torch.Tensor, Outcome]:
    """Return ``base + delta`` computed in float32 and rounded once to ``dtype``, and what it did.

    Where no value changes, the base's own bits are returned: adding zero would turn -0.0 into 0.0.

    Args:
        base: (rows, columns) as stored.
        delta: (rows, columns), float32.
        dtype: what to round to.
        key: the tensor's name, for messages.

    Raises:
        NonFiniteError: the base holds NaN or infinity, or the result does not fit ``dtype``.
    """
    # In float64 the square of no float32 number vanishes, so the norm is zero only where every element is; NaN is not zero.
    norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    outcome = Outcome(nonzero=norm != 0, squared_norm=norm**2)
    return _settled(base, (delta + base) if outcome.nonzero else None, outcome, dtype, key)


def _settled(
    base: torch.Tensor, exact: torch.Tensor | None, outcome: Outcome, dtype: torch.dtype, key: str
) -> tuple[torch.Tensor, Outcome]:
    """Round new values once, refuse what is not finite, and keep the base's bits where nothing changes."""
    kept = base.to(dtype)
    result = kept if exact is None else exact.to(dtype)
    if not all_finite(result):
        where = "the base holds NaN or infinity" if not all_finite(base) else f"the result does not fit {dtype}"
        raise NonFiniteError(f"{key}: {where}.")
    outcome.changed = exact is not None and not torch.equal(result, kept)
    return (result if outcome.changed else kept), outcome


def chunks(plan: MergePlan, region: Region) -> list[tuple[int, int]]:
    """Return (first row, row after the last) of the pieces that a region is handled in."""
    uses = [plan.uses[term.use] for term in region.terms]
    if any(isinstance(use, PairUse) and use.magnitude and use.swapped for use in uses):
        return [(0, region.rows)]  # output features are columns, whose norms need every row
    step = max(1, CHUNK_ELEMENTS // region.columns)
    return [(first, min(first + step, region.rows)) for first in range(0, region.rows, step)]


def convert(base: torch.Tensor, dtype: torch.dtype, key: str) -> torch.Tensor:
    """Return ``base`` rounded to ``dtype``: what becomes of the rows of a changed tensor that no delta reaches."""
    result = base.to(dtype)
    if not all_finite(result):
        raise NonFiniteError(f"{key}: the base holds NaN or infinity, or does not fit {dtype}.")
    return result


class Merger:
    """Values of regions: what a writer calls for each piece of a region, in any order."""

    def __init__(self, plan: MergePlan, base: BaseValues, adapters: AdapterValues) -> None:
        self._plan = plan
        self._base = base
        self._adapters = adapters

    def _term(self, term: Term, first: int, last: int, columns: int) -> torch.Tensor:
        """Return what one term adds to rows ``first:last`` of its region, float32."""
        use = self._plan.uses[term.use]
        if isinstance(use, TensorUse):
            return self._adapters.rows(use, term, first, last, columns).float().mul_(use.scaling)
        factors = self._adapters.factors(term.use)
        return delta_rows(factors, use, term.expert or 0, term.offset + first, term.offset + last)

    def _scaled(self, values: torch.Tensor, term: Term, first: int, last: int) -> torch.Tensor:
        """Return base + delta with each output feature scaled to DoRA's magnitude, float32."""
        use = self._plan.uses[term.use]
        assert isinstance(use, PairUse)  # noqa: S101 - only pairs have a magnitude
        magnitude = self._adapters.magnitude(use)
        if use.swapped:
            return values * (magnitude / torch.linalg.vector_norm(values, dim=0))
        part = magnitude[term.offset + first : term.offset + last]
        return values * (part / torch.linalg.vector_norm(values, dim=1)).unsqueeze(1)

    def values(self, row: PlanRow, region: Region, first: int, last: int) -> tuple[bytearray, Outcome]:
        """Return the bytes of rows ``first:last`` of a region of the output tensor ``row``, and what the adapters did to them.

        Raises:
            NonFiniteError: NaN or infinity in the base, or a result that does not fit the dtype.
        """
        dtype, columns = TORCH_DTYPES[row.dtype], region.columns
        base, buffer = self._base.rows(row, region.start + first * columns, last - first, columns)
        values = base
        if region.replacement is not None:
            use = self._plan.uses[region.replacement.use]
            assert isinstance(use, TensorUse)  # noqa: S101 - claims make replacements of tensors only
            values = self._adapters.rows(use, region.replacement, first, last, columns)
        assert values is not None  # noqa: S101 - a row without a source is replaced in full
        dora = [
            term for term in region.terms if isinstance(use := self._plan.uses[term.use], PairUse) and use.magnitude
        ]
        if region.replacement is None and not dora:
            delta = self._term(region.terms[0], first, last, columns)
            for term in region.terms[1:]:
                delta += self._term(term, first, last, columns)
            result, outcome = add_delta(values, delta, dtype, row.key)
            return bytes_of(result, buffer), outcome
        exact = values.float()
        for term in region.terms:
            exact = exact + self._term(term, first, last, columns)
        for term in dora:
            exact = self._scaled(exact, term, first, last)
        before = torch.zeros_like(exact) if base is None else base
        norm = float(torch.linalg.vector_norm(exact.double() - before.double()))
        if not math.isfinite(norm) and not all_finite(before):
            raise NonFiniteError(f"{row.key}: the base holds NaN or infinity.")
        outcome = Outcome(nonzero=base is None or norm != 0, squared_norm=norm**2)
        result, outcome = _settled(before, exact, outcome, dtype, row.key)
        outcome.changed |= base is None
        return bytes_of(result, buffer), outcome

    def kept(self, row: PlanRow, start: int, elements: int) -> bytearray:
        """Return the bytes of elements of ``row`` that no region covers, from element ``start`` on, converted to its dtype."""
        base, buffer = self._base.rows(row, start, elements, 1)
        assert base is not None  # noqa: S101 - as above
        return bytes_of(convert(base, TORCH_DTYPES[row.dtype], row.key), buffer)
