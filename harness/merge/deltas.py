"""The arithmetic: one expert's delta in float32, added to the base in float32, rounded once.

The delta follows ``peft.tuners.lora.layer.ParamWrapper.get_delta_weight`` (0.18.0 to 0.21.2) for fused parameters and
``Linear.get_delta_weight`` for the rest, but is never rounded to the weight's dtype before it is added, as PEFT's is.
"""

from __future__ import annotations

import os
from collections import OrderedDict
from dataclasses import dataclass

import torch

from harness.merge.errors import NonFiniteError
from harness.merge.records import MergePlan, PairUse, Region
from harness.merge.safetensors_file import TensorInfo, read_range

TORCH_DTYPES = {"F32": torch.float32, "BF16": torch.bfloat16, "F16": torch.float16}
CACHED_PAIRS = 4
"""Pairs kept decoded: those of one layer's experts, which the rows of a layer take turns to use."""
CHUNK_ELEMENTS = 4 * 1024 * 1024
"""Elements handled at once, so that a large matrix (lm_head) costs no more memory than an expert."""


def tensor_of(data: bytearray, dtype: str, shape: tuple[int, ...]) -> torch.Tensor:
    """Return a tensor over ``data``, which it shares."""
    return torch.frombuffer(data, dtype=TORCH_DTYPES[dtype]).reshape(shape)


def bytes_of(tensor: torch.Tensor, buffer: bytearray) -> bytearray:
    """Return the bytes of a tensor, in ``buffer`` where they fit exactly: usually that of the base it was computed from."""
    size = tensor.numel() * tensor.element_size()
    target = buffer if len(buffer) == size else bytearray(size)
    torch.frombuffer(target, dtype=tensor.dtype).copy_(tensor.reshape(-1))
    return target


class Factors:
    """The adapter's matrices in float32, per expert, read when first needed.

    ``of(use)`` gives ``lora_A`` (num_experts, rank, a_features) and ``lora_B`` (num_experts, b_features, rank); a Linear counts as one
    expert.
    """

    def __init__(self, plan: MergePlan, descriptor: int) -> None:
        self._plan = plan
        self._descriptor = descriptor
        self._kept: OrderedDict[int, tuple[torch.Tensor, torch.Tensor]] = OrderedDict()

    def _read(self, info: TensorInfo) -> torch.Tensor:
        data = read_range(self._descriptor, info.start, info.stop, what=self._plan.adapter.file.name)
        return tensor_of(data, info.dtype, info.shape)

    def check_finite(self) -> None:
        """Read every matrix once and refuse NaN and infinity.

        Raises:
            NonFiniteError: names the first module that has one.
        """
        for use in self._plan.uses:
            for name, info in (("lora_A", use.pair.lora_A), ("lora_B", use.pair.lora_B)):
                if not all_finite(self._read(info)):
                    raise NonFiniteError(
                        f"the adapter's {name} of {use.pair.module} holds NaN or infinity.",
                        "The training diverged or the file is damaged; nothing was merged.",
                    )

    def of(self, number: int) -> tuple[torch.Tensor, torch.Tensor]:
        """Return the two stacks of pair ``number`` of the plan."""
        if number not in self._kept:
            use = self._plan.uses[number]
            self._kept[number] = split_experts(self._read(use.pair.lora_A), self._read(use.pair.lora_B), use)
            if len(self._kept) > CACHED_PAIRS:
                self._kept.popitem(last=False)
        self._kept.move_to_end(number)
        return self._kept[number]


def split_experts(lora_A: torch.Tensor, lora_B: torch.Tensor, use: PairUse) -> tuple[torch.Tensor, torch.Tensor]:  # noqa: N803 - the field's names
    """Return float32 ``lora_A`` (E, r, a) and ``lora_B`` (E, b, r) from the flat (E*r, a) and (b, E*r).

    Expert e's rows of lora_A are consecutive. Its columns of lora_B are every E-th (``rank_major``, PEFT) or
    consecutive (``grouped_by_expert``).
    """
    count = use.num_experts or 1
    stacked_A = lora_A.float().reshape(count, use.rank, -1)  # noqa: N806
    if use.grouped_by_expert:
        stacked_B = lora_B.float().reshape(-1, count, use.rank).permute(1, 0, 2)  # noqa: N806
    else:
        stacked_B = lora_B.float().reshape(-1, use.rank, count).permute(2, 0, 1)  # noqa: N806
    return stacked_A, stacked_B.contiguous()


def delta_rows(
    factors: tuple[torch.Tensor, torch.Tensor], use: PairUse, expert: int, start: int, stop: int
) -> torch.Tensor:
    """Return rows ``start:stop`` of one expert's (out, in) delta, float32.

    ``standard``: lora_B_e @ lora_A_e; ``swapped``: its transpose.
    """
    lora_A, lora_B = factors[0][expert], factors[1][expert]  # noqa: N806 - the field's names
    product = lora_A[:, start:stop].T @ lora_B.T if use.swapped else lora_B[start:stop] @ lora_A
    return product.mul_(use.scaling)


@dataclass
class Outcome:
    """What one region's delta did: whether any element of it is non-zero, whether any written value differs, its squared norm."""

    nonzero: bool = False
    changed: bool = False
    squared_norm: float = 0.0

    def add(self, other: Outcome) -> None:
        """Take another part of the same tensor into account."""
        self.nonzero |= other.nonzero
        self.changed |= other.changed
        self.squared_norm += other.squared_norm


def all_finite(tensor: torch.Tensor) -> bool:
    """Return whether a tensor holds neither NaN nor infinity.

    Either makes the sum non-finite, and a sum is several times quicker than looking at each element; only where the sum
    overflows are the elements looked at.
    """
    return bool(torch.isfinite(tensor.sum(dtype=torch.float32))) or bool(torch.isfinite(tensor).all())


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
    kept = base.to(dtype)
    # In float64 the square of no float32 number vanishes, so the norm is zero only where every element is; NaN is not zero.
    norm = float(torch.linalg.vector_norm(delta, dtype=torch.float64))
    outcome = Outcome(nonzero=norm != 0, squared_norm=norm**2)
    result = (delta + base).to(dtype) if outcome.nonzero else kept
    if not all_finite(result):
        where = "the base holds NaN or infinity" if not all_finite(base) else f"the result does not fit {dtype}"
        raise NonFiniteError(f"{key}: {where}.")
    outcome.changed = outcome.nonzero and not torch.equal(result, kept)
    return (result if outcome.changed else kept), outcome


def chunks(region: Region) -> list[tuple[int, int]]:
    """Return (first row, row after the last) of the pieces that a region is handled in."""
    step = max(1, CHUNK_ELEMENTS // region.columns)
    return [(first, min(first + step, region.rows)) for first in range(0, region.rows, step)]


def open_adapter_file(plan: MergePlan) -> int:
    """Return a descriptor of the adapter's tensor file."""
    return os.open(plan.adapter.file.path, os.O_RDONLY | os.O_CLOEXEC)


def convert(base: torch.Tensor, dtype: torch.dtype, key: str) -> torch.Tensor:
    """Return ``base`` rounded to ``dtype``: what becomes of the rows of a changed tensor that no delta reaches."""
    result = base.to(dtype)
    if not all_finite(result):
        raise NonFiniteError(f"{key}: the base holds NaN or infinity, or does not fit {dtype}.")
    return result
