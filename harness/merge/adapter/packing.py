"""The flat matrices of a fused LoRA taken apart by expert and put together again, without touching a value.

Everything here permutes, so it works in the adapter's own dtype and taking apart undoes putting together bit for bit. Shapes: flat lora_A
(E*r, a) and lora_B (b, E*r); stacks (E, r, a) and (E, b, r).
"""

from __future__ import annotations

import torch

from harness.merge.adapter.layout import BPacking

Stacks = tuple[torch.Tensor, torch.Tensor]
"""lora_A (E, r, a) and lora_B (E, b, r)."""


def unpack(lora_a: torch.Tensor, lora_b: torch.Tensor, rank: int, packing: BPacking) -> Stacks:
    """Return the stacks of flat matrices; see ``harness.merge.adapter.layout`` for what the packings mean."""
    count = lora_a.shape[0] // rank
    stacked_a = lora_a.reshape(count, rank, -1)
    if packing == "grouped_by_expert":
        return stacked_a, lora_b.reshape(-1, count, rank).permute(1, 0, 2)
    return stacked_a, lora_b.reshape(-1, rank, count).permute(2, 0, 1)


def pack(stacks: Stacks, packing: BPacking) -> tuple[torch.Tensor, torch.Tensor]:
    """Return the flat matrices of stacks, contiguous."""
    lora_a, lora_b = stacks
    count, rank, _ = lora_a.shape
    flat_b = lora_b.permute(1, 0, 2) if packing == "grouped_by_expert" else lora_b.permute(1, 2, 0)
    return lora_a.reshape(count * rank, -1).contiguous(), flat_b.reshape(-1, count * rank).contiguous()


def turn(stacks: Stacks) -> Stacks:
    """Return the stacks of the other io layout: the same delta, as the transpose of a product instead of a product.

    (B A)^T = A^T B^T, so lora_A becomes B^T and lora_B becomes A^T.
    """
    lora_a, lora_b = stacks
    return lora_b.transpose(1, 2), lora_a.transpose(1, 2)


def split_stacks(
    lora_A: torch.Tensor,  # noqa: N803 - the field's names
    lora_B: torch.Tensor,  # noqa: N803
    *,
    count: int,
    rank: int,
    grouped_by_expert: bool,
) -> tuple[torch.Tensor, torch.Tensor]:
    """Return ``lora_A`` (count, rank, a) and ``lora_B`` (count, b, rank) from the flat (count*rank, a) and (b, count*rank).

    Expert e's rows of lora_A are consecutive. Its columns of lora_B are every count-th (``rank_major``, PEFT) or
    consecutive (``grouped_by_expert``).
    """
    return stack_a(lora_A, count=count, rank=rank), stack_b(
        lora_B, count=count, rank=rank, grouped_by_expert=grouped_by_expert
    )


def stack_a(lora_A: torch.Tensor, *, count: int, rank: int) -> torch.Tensor:  # noqa: N803
    """Return the half of ``split_stacks`` that is ``lora_A``'s: a view of it."""
    return lora_A.reshape(count, rank, -1)


def stack_b(lora_B: torch.Tensor, *, count: int, rank: int, grouped_by_expert: bool) -> torch.Tensor:  # noqa: N803
    """Return the half of ``split_stacks`` that is ``lora_B``'s: a copy."""
    if grouped_by_expert:
        stacked_B = lora_B.reshape(-1, count, rank)  # noqa: N806
    else:
        # In two steps, each of which moves runs of neighbours: half the time of one.
        stacked_B = lora_B.reshape(-1, rank, count).transpose(1, 2).contiguous()  # noqa: N806
    return stacked_B.permute(1, 0, 2).contiguous()
