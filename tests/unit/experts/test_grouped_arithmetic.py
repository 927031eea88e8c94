"""The arithmetic of the grouped forward against sums written out by hand, a token and an expert at a time."""

from __future__ import annotations

import pytest
import torch
from packed_experts import Packed

from harness.experts.extraction import ExpertLora
from harness.experts.grouped import products
from harness.experts.grouped.arithmetic import FactoredLora, Made, grouped_linear, grouped_lora, routed
from harness.experts.grouped.groups import Groups
from harness.experts.grouped.products import way, way_of_packed

ENDS = [0, 3, 3, 4, 9]
"""Five experts; the first and the third have no rows."""


def groups() -> Groups:
    return Groups(torch.tensor(ENDS, dtype=torch.int32))


def expert_of(row: int) -> int:
    return next(expert for expert, end in enumerate(ENDS) if row < end)


def draw(*shape: int, dtype: torch.dtype = torch.float64, seed: int = 0) -> torch.Tensor:
    return torch.randn(shape, dtype=torch.float64, generator=torch.Generator().manual_seed(seed)).to(dtype)


def lora(dtype: torch.dtype = torch.float64, *, rank: int = 4) -> ExpertLora:
    first, second = draw(5, 8, rank, dtype=dtype, seed=3), draw(5, rank, 16, dtype=dtype, seed=4)
    return ExpertLora(first=first, second=second, scaling=0.75, num_experts=5, io_layout="standard")


def transposed(matrices: torch.Tensor) -> torch.Tensor:
    return matrices.mT


def factored(adapter: ExpertLora) -> FactoredLora:
    """The adapter as products take it, made of its two factors at each use."""
    return FactoredLora(Made((adapter.first,), transposed), Made((adapter.second,), transposed), adapter.scaling)


@pytest.mark.parametrize(
    ("dtype", "rank", "expected", "tolerance"),
    [
        (torch.float64, 4, "loop", 1e-14),
        (torch.float32, 4, "grouped_mm", 1e-6),
        (torch.float32, 3, "grouped_mm", 1e-6),
        (torch.bfloat16, 8, "grouped_mm", 3e-2),
    ],
)
def test_each_row_meets_its_own_experts_matrix_and_lora(
    dtype: torch.dtype, rank: int, expected: str, tolerance: float
) -> None:
    x, weight, adapter = draw(9, 8, dtype=dtype, seed=1), draw(5, 16, 8, dtype=dtype, seed=2), lora(dtype, rank=rank)

    found = grouped_lora(grouped_linear(x, weight, groups()), x, factored(adapter), groups())

    by_hand = torch.empty(9, 16, dtype=torch.float64)
    for row in range(9):
        e = expert_of(row)
        delta = 0.75 * (adapter.first[e].double() @ adapter.second[e].double())
        by_hand[row] = x[row].double() @ (weight[e].double().T + delta)
    assert found.dtype == dtype
    assert way(x, weight.mT) == expected
    assert float((found.double() - by_hand).abs().max() / by_hand.abs().max()) < tolerance


def test_gradients_are_those_of_finite_differences() -> None:
    x, weight = draw(9, 8, seed=1).requires_grad_(), draw(5, 16, 8, seed=2).requires_grad_()

    assert torch.autograd.gradcheck(lambda *given: grouped_linear(*given, groups()), (x, weight))


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
def test_gradients_of_a_sum_reach_the_factors(dtype: torch.dtype) -> None:
    """The gradient of a plain sum has strides of 0, which grouped_mm does not take."""
    x, adapter = draw(9, 8, dtype=dtype, seed=1), lora(dtype)
    for factor in (adapter.first, adapter.second):
        factor.requires_grad_()

    grouped_lora(torch.zeros(9, 16, dtype=dtype), x, factored(adapter), groups()).sum().backward()

    for e in range(5):
        rows = x[[row for row in range(9) if expert_of(row) == e]].double()
        ones = torch.ones(len(rows), 16, dtype=torch.float64)
        of_second = 0.75 * (rows @ adapter.first[e].detach().double()).T @ ones
        torch.testing.assert_close(adapter.second.grad[e].double(), of_second, rtol=1e-5, atol=1e-5)
        of_first = 0.75 * rows.T @ ones @ adapter.second[e].detach().double().T
        torch.testing.assert_close(adapter.first.grad[e].double(), of_first, rtol=1e-5, atol=1e-5)


def stacked(*matrices: torch.Tensor) -> torch.Tensor:
    return torch.stack(matrices)


def test_gradients_reach_every_tensor_that_matrices_are_made_of() -> None:
    x, matrices = draw(9, 8, seed=1).requires_grad_(), [draw(16, 8, seed=e).requires_grad_() for e in range(5)]

    assert torch.autograd.gradcheck(
        lambda rows, *given: grouped_linear(rows, Made(given, stacked), groups()), (x, *matrices)
    )


def test_a_tensor_that_is_not_trained_gets_no_gradient_beside_one_that_is() -> None:
    x, matrices = draw(9, 8, seed=1), [draw(16, 8, seed=e).requires_grad_(e != 1) for e in range(5)]

    grouped_linear(x, Made(tuple(matrices), stacked), groups()).sum().backward()

    assert [matrix.grad is not None for matrix in matrices] == [True, False, True, True, True]


def test_matrices_that_are_made_are_cast_to_the_rows_and_their_gradients_back() -> None:
    x, matrices = (
        draw(9, 8, dtype=torch.bfloat16, seed=1),
        [draw(16, 8, dtype=torch.float32, seed=e).requires_grad_() for e in range(5)],
    )

    found = grouped_linear(x, Made(tuple(matrices), stacked), groups())
    found.sum().backward()

    assert found.dtype == torch.bfloat16
    for e, matrix in enumerate(matrices):
        rows = x[[row for row in range(9) if expert_of(row) == e]].float()
        assert matrix.grad.dtype == torch.float32
        torch.testing.assert_close(matrix.grad, rows.sum(0).expand(16, 8), rtol=2e-2, atol=2e-2)


def test_matrices_that_are_made_are_not_kept_for_backward() -> None:
    x, matrices = draw(9, 8, seed=1), [draw(16, 8, seed=e).requires_grad_() for e in range(5)]
    kept: list[int] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t.data_ptr()) or t, lambda t: t):
        grouped_linear(x, Made(tuple(matrices), stacked), groups())

    assert kept == [x.data_ptr(), *(matrix.data_ptr() for matrix in matrices)]


@pytest.mark.parametrize(
    ("run_length", "runs"), [(1, [[1], [3], [4]]), (2, [[1, 3], [4]]), (3, [[1, 3, 4]]), (5, [[1, 3, 4]])]
)
def test_a_packed_weight_is_unpacked_in_runs_of_the_experts_with_rows_and_never_kept(
    run_length: int, runs: list[list[int]]
) -> None:
    full, x = draw(5, 16, 8, seed=2), draw(9, 8, seed=1).requires_grad_()
    weight = Packed.of(full, run_length=run_length)
    kept: list[torch.Tensor] = []

    with torch.autograd.graph.saved_tensors_hooks(lambda t: kept.append(t) or t, lambda t: t):
        found = grouped_linear(x, weight, groups())
    in_forward = list(weight.unpacked)
    found.backward(torch.ones_like(found))

    plain = x.detach().clone().requires_grad_()
    expected = grouped_linear(plain, full, groups())
    expected.backward(torch.ones_like(expected))
    assert in_forward == runs
    assert weight.unpacked == [*runs, *runs]
    assert [type(tensor) for tensor in kept] == [Packed]
    torch.testing.assert_close(found, expected, rtol=0, atol=0)
    torch.testing.assert_close(x.grad, plain.grad, rtol=0, atol=0)


@pytest.mark.parametrize("ends", [[2, 4, 5, 7, 9], [0, 3, 3, 4, 9], [9, 9, 9, 9, 9], [0, 0, 0, 0, 9], [1, 1, 9, 9, 9]])
@pytest.mark.parametrize("run_length", [1, 2, 3, 5])
def test_runs_are_multiplied_as_their_experts_are_by_hand(
    ends: list[int], run_length: int, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By grouped_mm in float32, which float64 has not; where it would wait for the device, by a loop."""
    x, full = draw(9, 8, dtype=torch.float32, seed=1), draw(5, 16, 8, dtype=torch.float32, seed=2)
    of = [next(expert for expert, end in enumerate(ends) if row < end) for row in range(9)]
    by_hand = torch.stack([full[expert].double() @ x[row].double() for row, expert in enumerate(of)])
    weight, given = Packed.of(full, run_length=run_length), torch.tensor(ends, dtype=torch.int32)

    for waits in (False, True):
        monkeypatch.setattr(products, "_grouped_mm_waits", lambda _, waits=waits: waits)
        found = grouped_linear(x, weight, Groups(given))
        assert found.dtype == torch.float32
        torch.testing.assert_close(found.double(), by_hand, rtol=1e-6, atol=1e-6)


def test_no_rows_unpack_nothing() -> None:
    weight = Packed.of(draw(5, 16, 8), run_length=5)

    found = grouped_linear(draw(0, 8), weight, Groups(torch.zeros(5, dtype=torch.int32)))

    assert found.shape == (0, 16)
    assert weight.unpacked == []


@pytest.mark.parametrize("run_length", [1, 5])
def test_autocast_does_not_change_the_dtype_of_a_product_with_packed_experts(run_length: int) -> None:
    x, full = draw(9, 8, dtype=torch.float32, seed=1).requires_grad_(), draw(5, 16, 8, dtype=torch.float32, seed=2)
    weight = Packed.of(full, run_length=run_length)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grouped_linear(x, weight, groups())
        found.sum().backward()

    assert found.dtype == torch.float32
    torch.testing.assert_close(found, grouped_linear(x, weight, groups()), rtol=0, atol=0)
    by_hand = torch.stack([full[expert_of(row)].double().sum(0) for row in range(9)])
    torch.testing.assert_close(x.grad.double(), by_hand, rtol=1e-5, atol=1e-5)


def test_tokens_are_summed_over_their_experts_and_absent_experts_add_nothing() -> None:
    """Index 3 of three experts is another device's, as transformers 5 marks it."""
    x, weight = draw(4, 8, seed=1), draw(3, 8, 8, seed=2)
    index = torch.tensor([[0, 2], [2, 0], [3, 1], [3, 3]])
    weights = draw(4, 2, seed=3).requires_grad_()

    found = routed(x, index, weights, num_experts=3, expert=lambda rows, of: grouped_linear(rows, weight, of))
    found.sum().backward()

    by_hand = torch.zeros(4, 8, dtype=torch.float64)
    for token in range(4):
        for place in range(2):
            if index[token, place] < 3:
                by_hand[token] += weights[token, place].detach() * (weight[index[token, place]] @ x[token])
    torch.testing.assert_close(found, by_hand, rtol=1e-13, atol=1e-13)
    assert (weights.grad[index == 3] == 0).all()
    assert (weights.grad[index < 3] != 0).all()


def test_autocast_does_not_change_the_dtype_of_a_product() -> None:
    x, weight = draw(9, 8, dtype=torch.float32, seed=1).requires_grad_(), draw(5, 16, 8, dtype=torch.float64, seed=2)

    with torch.autocast("cpu", dtype=torch.bfloat16):
        found = grouped_linear(x.double(), weight, groups())
        found.sum().backward()

    torch.testing.assert_close(found, grouped_linear(x.double(), weight, groups()), rtol=0, atol=0)
    assert x.grad is not None


@pytest.mark.parametrize(
    ("operand", "expected"),
    [
        (torch.zeros(4, 8), "grouped_mm"),
        (torch.zeros(4, 7), "loop"),
        (torch.zeros(4, 8, dtype=torch.float64), "loop"),
        (torch.zeros(0, 8), "loop"),
        (torch.zeros(33)[1:].view(4, 8), "loop"),
        (Packed.of(torch.zeros(2, 4, 8), run_length=2), "loop"),
    ],
)
def test_grouped_mm_is_used_where_its_kernel_takes_the_operand(operand: torch.Tensor, expected: str) -> None:
    assert way(operand) == expected


@pytest.mark.parametrize(
    ("width", "dtype", "run_length", "expected"),
    [
        (8, torch.float32, 2, "grouped_mm"),
        (8, torch.float32, 9, "grouped_mm"),
        (8, torch.float32, 1, "loop"),
        (7, torch.float32, 9, "loop"),
        (8, torch.float64, 9, "loop"),
    ],
)
def test_runs_go_by_grouped_mm_where_it_takes_several_experts(
    width: int, dtype: torch.dtype, run_length: int, expected: str
) -> None:
    assert way_of_packed(Packed.of(torch.zeros(9, 4, width, dtype=dtype), run_length=run_length)) == expected
