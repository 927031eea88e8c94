"""Errors that are within rounding element by element and show only in the sum: a scaled base, a scaled delta.

And merges rounded in many ways, which have none.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from format_samples import Numbers, delta, exact, pair, write_adapter, write_base

from harness.merge import TensorVerdict, audit

Q = "model.layers.0.self_attn.q_proj"
OUT, WIDE, RANK = 192, 320, 4
DTYPES = [torch.bfloat16, torch.float16, torch.float32]
Rounding = Callable[[torch.Tensor, torch.dtype], torch.Tensor]


class Case:
    """A weight of the usual size with a delta ``ratio`` times as large; everything in float64."""

    def __init__(self, folder: Path, dtype: torch.dtype, ratio: float = 0.03, seed: int = 0) -> None:
        numbers = Numbers(seed)
        self.folder, self.dtype = folder, dtype
        self.weight = (0.02 * numbers(OUT, WIDE)).to(dtype).double()
        self.lora = pair(numbers, Q, OUT, WIDE, RANK)
        self.lora[f"{Q}.lora_B.weight"] *= 0.02 * ratio / (1.7 * RANK**0.5)
        self.delta = torch.tensor(delta(self.lora, Q, 1.7))
        self.base = write_base(folder / "base", {f"{Q}.weight": self.weight.to(dtype)})
        self.adapter = write_adapter(folder / "adapter", self.lora, r=RANK, lora_alpha=1.7 * RANK)

    def judged(self, merged: torch.Tensor) -> TensorVerdict:
        """The verdict on these values, rounded to the case's dtype."""
        tensors = {f"{Q}.weight": merged.to(self.dtype)}
        (row,) = audit(self.base, self.adapter, write_base(self.folder / "merged", tensors)).rows
        return row


@pytest.mark.parametrize("ratio", [0.01, 0.03, 0.7])
@pytest.mark.parametrize("factor", [1.002, 0.998, 1.5, 0.0])
@pytest.mark.parametrize("dtype", DTYPES)
def test_a_scaled_base_is_wrong(tmp_path: Path, dtype: torch.dtype, factor: float, ratio: float) -> None:
    """0.2 % is less than a unit of bfloat16 everywhere."""
    case = Case(tmp_path, dtype, ratio)

    row = case.judged(factor * case.weight + case.delta)

    assert (row.verdict, row.detail) == ("wrong", f"base + delta, the base at {factor:g} times itself")


@pytest.mark.parametrize("ratio", [0.01, 0.7])
def test_a_slightly_scaled_delta_in_float32(tmp_path: Path, ratio: float) -> None:
    """Every element is within what bfloat16 arithmetic may lose, and none of it is random."""
    case = Case(tmp_path, torch.float32, ratio)

    row = case.judged(case.weight + 1.003 * case.delta)

    assert (row.verdict, row.scale) == ("partial", 1.003)


def stochastically(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    """Each value to one of its two neighbours in the dtype, by chance, so that it is right on average."""
    bits = {torch.bfloat16: 8, torch.float16: 11, torch.float32: 24}[dtype]
    unit = torch.ldexp(torch.ones_like(values), torch.frexp(values).exponent - bits)
    chance = torch.rand(values.shape, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    return torch.floor(values / unit + chance) * unit


def nearest(values: torch.Tensor, dtype: torch.dtype) -> torch.Tensor:
    return values.to(dtype).double()


def merges(case: Case) -> dict[str, torch.Tensor]:
    """Right merges in the arithmetic of several engines.

    Where the model is float32, they compute deltas in bfloat16.
    """
    low = torch.bfloat16 if case.dtype == torch.float32 else case.dtype
    lora_a, lora_b = (torch.tensor(exact(case.lora[f"{Q}.lora_{side}.weight"])) for side in "AB")
    coarse = nearest(lora_b, low) @ nearest(lora_a, low)
    return {
        "rounded once": case.weight + case.delta,
        "rounded twice": case.weight + nearest(case.delta, low),
        "rounded factors": case.weight + 1.7 * coarse,
        "scaled after rounding": case.weight + nearest(1.7 * nearest(coarse, low), low),
        "rounded by chance": stochastically(case.weight + case.delta, case.dtype),
        "rounded twice by chance": stochastically(case.weight + stochastically(case.delta, low), case.dtype),
    }


@pytest.mark.parametrize("ratio", [0.03, 0.7])
@pytest.mark.parametrize("dtype", DTYPES)
def test_no_arithmetic_is_taken_for_a_bias(tmp_path: Path, dtype: torch.dtype, ratio: float) -> None:
    for seed in range(4):
        case = Case(tmp_path / str(seed), dtype, ratio, seed)
        for name, merged in merges(case).items():
            assert case.judged(merged).verdict == "applied", (seed, name)


def test_the_sum_of_rank_one_steps_rounded_after_each_has_no_bias(tmp_path: Path) -> None:
    case = Case(tmp_path, torch.bfloat16)
    lora_a, lora_b = (torch.tensor(exact(case.lora[f"{Q}.lora_{side}.weight"])) for side in "AB")
    total = torch.zeros_like(case.delta)
    for step in range(RANK):
        total = nearest(total + 1.7 * lora_b[:, step : step + 1] @ lora_a[step : step + 1], torch.bfloat16)

    assert case.judged(case.weight + total).verdict == "applied"
