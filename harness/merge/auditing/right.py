"""What a piece of a right merge holds: base + delta in float32, rounded once, in buffers that are used again.

The same arithmetic as ``harness.merge.deltas``, in fewer passes over memory: a scaling that is a power of two changes no bit of the product's
mantissa, so a GEMM that accumulates onto the base in one go gives what product, scaling and sum give one after the other. Where a
processor's GEMM does it in another order, the piece is not equal in every bit and is measured with care.
"""

from __future__ import annotations

from math import frexp

import torch

from harness.merge.records import PairUse

Factors = tuple[torch.Tensor, torch.Tensor]


class Workspace:
    """Buffers of one thread. A tensor it returns is valid until the next call."""

    def __init__(self) -> None:
        self._kept: dict[tuple[str, torch.dtype], torch.Tensor] = {}

    def _buffer(self, name: str, like: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        count = like.numel()
        if (name, dtype) not in self._kept or self._kept[name, dtype].numel() < count:
            self._kept[name, dtype] = torch.empty(count, dtype=dtype)
        return self._kept[name, dtype][:count].view(like.shape)

    def added(self, base: torch.Tensor, factors: Factors, use: PairUse, expert: int, first: int) -> torch.Tensor:
        """Return base + delta in float32.

        Args:
            base: (rows, columns), in any float dtype.
            factors: ``lora_A`` (num_experts, rank, a_features) and ``lora_B`` (num_experts, b_features, rank), float32.
            use: how the pair is read.
            expert: which expert's delta.
            first: its row that the first row of ``base`` gets.
        """
        lora_A, lora_B = factors[0][expert], factors[1][expert]  # noqa: N806 - the field's names
        last = first + base.shape[0]
        left, right = (lora_A[:, first:last].T, lora_B.T) if use.swapped else (lora_B[first:last], lora_A)
        wide = self._buffer("sum", base, torch.float32).copy_(base)
        if abs(frexp(use.scaling)[0]) == 0.5:  # noqa: PLR2004 - the mantissa of a power of two
            return wide.addmm_(left, right, alpha=use.scaling)
        product = torch.mm(left, right, out=self._buffer("product", base, torch.float32))
        return wide.add_(product.mul_(use.scaling))

    def rounded(self, wide: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
        """Return float32 values rounded to ``dtype``."""
        return wide if dtype == wide.dtype else self._buffer("rounded", wide, dtype).copy_(wide)
