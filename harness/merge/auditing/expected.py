"""What a piece of a right merge holds: base + delta in float32, rounded once, in buffers that are used again.

Fresh buffers would cost as much as the arithmetic, because the kernel clears each page. The arithmetic is that of
``harness.merge.write.arithmetic``, in fewer passes over memory. A scaling that is a power of two changes no bit of the
product's mantissa. So a GEMM that accumulates onto the base in one go gives what product, scaling and sum give one
after the other. Where a processor's GEMM does it in another order, the piece is not equal in every bit and is measured
with care.
"""

from __future__ import annotations

from math import frexp

import torch

from harness.merge.adapter.packing import Factors
from harness.merge.plan.merge_plan import PairContribution
from harness.merge.write.arithmetic import delta_sides
from harness.merge.write.buffers import Buffers

LANE_WORDS = 1 << 13
"""Words of ones that add up without carrying from one 16-bit lane into the next."""


class ExpectedValues:
    """What a right merge would hold, computed in one thread's buffers.

    A tensor that a method returns is valid until the same method is called again.
    """

    def __init__(self, buffers: Buffers) -> None:
        self._buffers = buffers

    def delta(
        self, factors: Factors, contribution: PairContribution, expert: int, first: int, rows: int, columns: int
    ) -> torch.Tensor:
        """Return ``rows`` of a delta from row ``first`` on, (rows, columns) in float32.

        Other arguments as for ``added``.
        """
        left, right = delta_sides(factors, contribution, expert, first, first + rows)
        product = torch.mm(left, right, out=self._buffers.tensor("delta", torch.float32, rows, columns))
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
        left, right = delta_sides(factors, contribution, expert, first, first + base.shape[0])
        wide = (
            self._buffers.tensor("sum", torch.float32, *base.shape)
            .copy_(base)
            .addmm_(left, right, alpha=contribution.scaling)
        )
        return wide if dtype == wide.dtype else self._buffers.tensor("once", dtype, *base.shape).copy_(wide)

    def once(self, base: torch.Tensor, delta: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return base + delta, rounded once to ``dtype``."""
        wide = self._buffers.tensor("sum", torch.float32, *base.shape).copy_(base).add_(delta)
        return wide if dtype == wide.dtype else self._buffers.tensor("once", dtype, *base.shape).copy_(wide)

    def twice(self, base: torch.Tensor, delta: torch.Tensor) -> torch.Tensor:
        """Return base + delta with the delta rounded to the base's dtype before it is added, as PEFT does."""
        rounded = self._buffers.tensor("twice", base.dtype, *base.shape)
        wide, change = (self._buffers.tensor(role, torch.float32, *base.shape) for role in ("second sum", "change"))
        # Operands of one dtype add several times quicker than mixed ones.
        wide.copy_(base).add_(change.copy_(rounded.copy_(delta)))
        return rounded.copy_(wide)

    def differs(self, role: str, one: torch.Tensor, other: torch.Tensor) -> torch.Tensor:
        """Return, per element, 1 where the values differ and 0 where not.

        They are integers of the elements' size, which is quicker than booleans.
        """
        kind = torch.int32 if one.element_size() == 4 else torch.int16  # noqa: PLR2004 - bytes
        first, second = one.reshape(-1).view(kind), other.reshape(-1).view(kind)
        found = torch.ne(first, second, out=self._buffers.tensor(role, kind, *first.shape))
        negative_zero = torch.iinfo(kind).min
        if negative_zero in {int(first.min()), int(second.min())}:
            # It is one number with 0.0, and most engines make that of it where they add zero.
            found.bitwise_and_((first | second).ne_(negative_zero))
        return found


def count(mask: torch.Tensor) -> int:
    """Return how many elements of a vector of zeros and ones are one: several are added up at a time, as parts of one
    word.
    """
    lanes = 8 // mask.element_size()
    whole = mask.numel() - mask.numel() % (LANE_WORDS * lanes)
    sums = mask[:whole].view(torch.int64).view(-1, LANE_WORDS).sum(1).view(mask.dtype)
    return int(sums.sum()) + int(mask[whole:].sum())
