"""The flat matrices of a fused LoRA taken apart by expert and put together again, without touching a value.

Everything here permutes. So it works in the adapter's own dtype, and taking apart undoes putting together bit for bit.
``harness.merge.adapter.layout`` says what the packings mean.
"""

from __future__ import annotations

import torch

from harness.merge.adapter.layout import BPacking

Factors = tuple[torch.Tensor, torch.Tensor]
"""lora_A (num_experts, rank, a_features) and lora_B (num_experts, b_features, rank)."""


def split_by_expert(
    lora_A: torch.Tensor,  # noqa: N803 - the field's names
    lora_B: torch.Tensor,  # noqa: N803
    *,
    num_experts: int,
    rank: int,
    packing: BPacking,
) -> Factors:
    """Return the factors of each expert from lora_A (num_experts*rank, a_features) and lora_B (b_features,
    num_experts*rank).
    """
    return (
        split_lora_a(lora_A, num_experts=num_experts, rank=rank),
        split_lora_b(lora_B, num_experts=num_experts, rank=rank, packing=packing),
    )


def split_lora_a(lora_A: torch.Tensor, *, num_experts: int, rank: int) -> torch.Tensor:  # noqa: N803 - as above
    """Return lora_A as (num_experts, rank, a_features): a view, because an expert's rows are consecutive."""
    return lora_A.reshape(num_experts, rank, -1)


def split_lora_b(lora_B: torch.Tensor, *, num_experts: int, rank: int, packing: BPacking) -> torch.Tensor:  # noqa: N803
    """Return lora_B as (num_experts, b_features, rank), a copy.

    An expert's columns are every num_experts-th (``rank_major``, PEFT) or consecutive (``grouped_by_expert``).
    """
    if packing == "grouped_by_expert":
        by_expert = lora_B.reshape(-1, num_experts, rank)
    else:
        # In two steps, each of which moves runs of neighbours: half the time of one.
        by_expert = lora_B.reshape(-1, rank, num_experts).transpose(1, 2).contiguous()
    return by_expert.permute(1, 0, 2).contiguous()


def pack(factors: Factors, packing: BPacking) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat lora_A and lora_B, contiguous; undoes ``split_by_expert``."""
    lora_a, lora_b = factors
    count, rank, _ = lora_a.shape
    flat_b = lora_b.permute(1, 0, 2) if packing == "grouped_by_expert" else lora_b.permute(1, 2, 0)
    return lora_a.reshape(count * rank, -1).contiguous(), flat_b.reshape(-1, count * rank).contiguous()


def turn(factors: Factors) -> Factors:
    """Return the factors of the other io layout: the same delta, as the transpose of a product instead of a product.

    (B A)^T = A^T B^T, so lora_A becomes B^T and lora_B becomes A^T.
    """
    lora_a, lora_b = factors
    return lora_b.transpose(1, 2), lora_a.transpose(1, 2)
