"""What a piece of a right merge holds: base + delta in float32, rounded once, in buffers that are used again.

Fresh buffers would cost as much as the arithmetic, because the kernel clears each page. The same arithmetic as ``harness.merge.write.arithmetic``, in fewer passes over memory: a scaling that is a power of two changes no bit of the product's
mantissa, so a GEMM that accumulates onto the base in one go gives what product, scaling and sum give one after the other. Where a
processor's GEMM does it in another order, the piece is not equal in every bit and is measured with care.
"""

from __future__ import annotations

from math import frexp, prod

import torch

from harness.merge.adapter.packing import Factors
from harness.merge.plan.merge_plan import PairContribution

LANE_WORDS = 1 << 13
"""Words of ones that add up without carrying from one 16-bit lane into the next."""


class Workspace:
    """Buffers of one thread. A tensor it returns is valid until the same method is called again."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def _buffer(self, name: str, shape: tuple[int, ...], dtype: torch.dtype) -> torch.Tensor:
        wanted = prod(shape)
        if (name, dtype) not in self._kept or self._kept[name, dtype].numel() < wanted:
            self._kept[name, dtype] = torch.empty(wanted, dtype=dtype)
        return self._kept[name, dtype][:wanted].view(shape)

    def delta(
        self, factors: Factors, contribution: PairContribution, expert: int, first: int, rows: int, columns: int
    ) -> torch.Tensor:
        """Return ``rows`` of a delta from row ``first`` on, (rows, columns) in float32; other arguments as for ``added``."""
        left, right = _sides(factors, contribution, expert, first, first + rows)
        product = torch.mm(left, right, out=self._buffer("delta", (rows, columns), torch.float32))
        return product.mul_(contribution.scaling)

    def added(
        self,
        base: torch.Tensor,
        factors: Factors,
        contribution: PairContribution,
        expert: int,
        first: int,
        dtype: torch.dtype,
    ) -> torch.Tensor:
        """Return base + delta, rounded once to ``dtype``.

        Args:
            base: (rows, columns), in any float dtype.
            factors: ``lora_A`` (num_experts, rank, a_features) and ``lora_B`` (num_experts, b_features, rank), float32.
            contribution: how the pair is read.
            expert: which expert's delta.
            first: its row that the first row of ``base`` gets.
            dtype: what to round to.
        """
        if abs(frexp(contribution.scaling)[0]) != 0.5:  # noqa: PLR2004 - the mantissa of a power of two
            return self.once(base, self.delta(factors, contribution, expert, first, *base.shape), dtype)
        left, right = _sides(factors, contribution, expert, first, first + base.shape[0])
        wide = (
            self._buffer("sum", base.shape, torch.float32).copy_(base).addmm_(left, right, alpha=contribution.scaling)
        )
        return wide if dtype == wide.dtype else self._buffer("once", base.shape, dtype).copy_(wide)

    def once(self, base: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return base + delta, rounded once to ``dtype``."""
        wide = self._buffer("sum", base.shape, torch.float32).copy_(base).add_(delta)
        return wide if dtype == wide.dtype else self._buffer("once", base.shape, dtype).copy_(wide)

    def twice(self, base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Return base + delta with the delta rounded to the base's dtype before it is added, as PEFT does."""
        rounded = self._buffer("twice", base.shape, base.dtype)
        wide, change = (self._buffer(name, base.shape, torch.float32) for name in ("second sum", "change"))
        # Operands of one dtype add several times quicker than mixed ones.
        wide.copy_(base).add_(change.copy_(rounded.copy_(delta)))
        return rounded.copy_(wide)

    def differs(self, name: str, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return, per element, 1 where the values differ and 0 where not; in integers of the elements' size, which is quicker than in booleans."""
        kind = torch.int32 if one.element_size() == 4 else torch.int16  # noqa: PLR2004 - bytes
        first, second = one.reshape(-1).view(kind), other.reshape(-1).view(kind)
        found = torch.ne(first, second, out=self._buffer(name, first.shape, kind))
        negative_zero = torch.iinfo(kind).min
        if negative_zero in {int(first.min()), int(second.min())}:
            # It is one number with 0.0, and most engines make that of it where they add zero.
            found.bitwise_and_((first | second).ne_(negative_zero))
        return found


def _sides(
    factors: Factors, contribution: PairContribution, expert: int, first: int, last: int
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the two matrices whose product are rows of an expert's delta as stored; see ``harness.merge.write.arithmetic.delta_rows``."""
    lora_A, lora_B = factors[0][expert], factors[1][expert]  # noqa: N806 - the field's names
    return (lora_A[:, first:last].T, lora_B.T) if contribution.swapped else (lora_B[first:last], lora_A)


def count(mask: torch.Tensor) -> int:
    """Return how many elements of a vector of zeros and ones are one: several are added up at a time, as parts of one word."""
    lanes = 8 // mask.element_size()
    whole = mask.numel() - mask.numel() % (LANE_WORDS * lanes)
    sums = mask[:whole].view(torch.int64).view(-1, LANE_WORDS).sum(1).view(mask.dtype)
    return int(sums.sum()) + int(mask[whole:].sum())
