"""The exactness counters against values made by hand and against exact rational arithmetic."""

from __future__ import annotations

from fractions import Fraction
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from safetensors.torch import save_file

from harness.bench.cases.exactness import share
from harness.bench.programs.exactness import Counted, Tensors, count, deltas, expect, round_once, ulp


def bf16(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64).bfloat16()


def doubles(*values: float) -> torch.Tensor:
    return torch.tensor(values, dtype=torch.float64)


HALF = 2.0**-8
"""Half a unit in the last place of bf16 at 1."""


def test_a_value_just_beside_a_middle_is_rounded_to_its_own_side() -> None:
    """By way of float32 both become the middle: the first goes down to the even 1, the last up to 1 + 4·HALF."""
    beside = doubles(1 + HALF + 2.0**-40, 1 + HALF, 1 + 3 * HALF - 2.0**-40, 1 + 3 * HALF, -(1 + HALF + 2.0**-40))

    assert torch.equal(round_once(beside).double(), doubles(1 + 2 * HALF, 1, 1 + 2 * HALF, 1 + 4 * HALF, -1 - 2 * HALF))
    assert beside.bfloat16().tolist() != round_once(beside).tolist(), "torch's own conversion rounds twice"


def _nearest(value: float) -> float:
    """The nearest bfloat16 by exact arithmetic: 8 significant bits, ties to even."""
    exact = Fraction(value)
    if exact == 0:
        return 0.0
    exponent = 0
    while abs(exact) >= 2 ** (exponent + 8):
        exponent += 1
    while abs(exact) < 2 ** (exponent + 7):
        exponent -= 1
    return float(Fraction(round(exact / Fraction(2) ** exponent)) * Fraction(2) ** exponent)


@given(st.floats(2.0**-60, 2.0**60), st.sampled_from([-1, 1]))
def test_rounding_is_to_the_nearest(value: float, sign: int) -> None:
    assert float(round_once(doubles(sign * value))) == _nearest(sign * value)


@given(st.integers(128, 255), st.integers(-60, 60), st.integers(-3, 3))
def test_rounding_near_a_middle_is_to_the_nearest(significand: int, exponent: int, beside: int) -> None:
    value = (significand + 0.5) * 2.0**exponent * (1 + beside * 2.0**-50)

    assert float(round_once(doubles(value))) == _nearest(value)


def test_units_in_the_last_place() -> None:
    assert ulp(doubles(1.0, 1.99, 2.0, 0.5, 0.0)).tolist() == [2.0**-7, 2.0**-7, 2.0**-6, 2.0**-8, 2.0**-133]


def test_elements_are_counted() -> None:
    """Untouched; right; wrong by one; wrong by two; dropped; changed though the right result is the base."""
    unit = 2.0**-7
    base = bf16(1, 1, 1, 1, 1, 1)
    delta = doubles(0, unit, unit, unit, 5 * unit, unit / 8)
    merged = bf16(1, 1 + unit, 1 + 2 * unit, 1 + 3 * unit, 1, 1 + unit)
    found = Counted()
    count(expect(base, delta), merged, found)

    assert (found.changed, found.exact, found.beyond) == (5, 1, 2)
    assert found.largest == 5.0


def test_not_a_number_is_beyond_everything() -> None:
    found = Counted()
    count(expect(bf16(1), doubles(1)), bf16(float("nan")), found)

    assert (found.changed, found.exact, found.beyond) == (1, 0, 1)


def test_a_large_base_excuses_what_cancels() -> None:
    """1 - 1.0001 is small, and its error of a tiny unit of its own is none of the operands'."""
    found = Counted()
    count(expect(bf16(1), doubles(-1.0001)), bf16(0), found)

    assert (found.changed, found.exact, found.beyond) == (1, 0, 0)


def test_deltas_follow_the_definition(tmp_path: Path) -> None:
    """Two experts of rank 2: column j of lora_B belongs to expert j % 2, rows 2e and 2e + 1 of lora_A to expert e."""
    stem = "base_model.model.model.layers.0.mlp.experts"
    inner_a, inner_b = torch.arange(12.0).reshape(4, 3), torch.arange(16.0).reshape(4, 4)
    outer_a, outer_b = torch.arange(8.0).reshape(4, 2), torch.arange(12.0).reshape(3, 4)
    tensors = {
        f"{stem}.base_layer.lora_A.weight": inner_a,
        f"{stem}.base_layer.lora_B.weight": inner_b,
        f"{stem}.lora_A.weight": outer_a,
        f"{stem}.lora_B.weight": outer_b,
    }
    save_file(tensors, tmp_path / "adapter_model.safetensors")
    sizes = {"rank": 2, "experts": 2, "width": 2, "scaling": 0.5}
    found = {(expert, name): delta.tolist() for expert, name, delta in deltas(Tensors(tmp_path), 0, sizes)}

    # Expert 1: columns 1 and 3 of lora_B, rows 2 and 3 of lora_A; gate is the upper half.
    gate = [
        [0.5 * (b1 * a1 + b3 * a3) for a1, a3 in zip((6, 7, 8), (9, 10, 11), strict=True)]
        for b1, b3 in ((1, 3), (5, 7))
    ]
    down = [
        [0.5 * (b0 * a0 + b2 * a2) for a0, a2 in zip((0, 1), (2, 3), strict=True)]
        for b0, b2 in ((0, 2), (4, 6), (8, 10))
    ]
    assert found[1, "gate_proj"] == gate
    assert found[0, "down_proj"] == down
    assert set(found) == {(expert, name) for expert in (0, 1) for name in ("gate_proj", "up_proj", "down_proj")}


@pytest.mark.parametrize("fused", [False, True])
def test_experts_are_found_stored_one_by_one_and_fused(tmp_path: Path, fused: bool) -> None:
    stem = "model.layers.0.mlp.experts"
    gate_up, down = torch.arange(24.0).reshape(2, 4, 3), torch.arange(12.0).reshape(2, 3, 2)
    one_by_one = {
        f"{stem}.{expert}.{name}.weight": part.contiguous()
        for expert in (0, 1)
        for name, part in (
            ("gate_proj", gate_up[expert, :2]),
            ("up_proj", gate_up[expert, 2:]),
            ("down_proj", down[expert]),
        )
    }
    save_file(
        {f"{stem}.gate_up_proj": gate_up, f"{stem}.down_proj": down} if fused else one_by_one,
        tmp_path / "m.safetensors",
    )
    tensors = Tensors(tmp_path)

    assert torch.equal(tensors.expert(0, 1, "gate_proj", 2), gate_up[1, :2])
    assert torch.equal(tensors.expert(0, 1, "up_proj", 2), gate_up[1, 2:])
    assert torch.equal(tensors.expert(0, 0, "down_proj", 2), down[0])


@pytest.mark.parametrize(
    ("part", "whole", "text"),
    [
        (0, 7, "0 %"),
        (7, 7, "100 %"),
        (1, 3, "33.33 %"),
        (99_999_999, 10**8, "99.999999 %"),
        (1, 10**6, "0.0001 %"),
        (3, 0, "-"),
    ],
)
def test_a_share_is_told_from_all_and_nothing(part: int, whole: int, text: str) -> None:
    assert share(part, whole) == text
