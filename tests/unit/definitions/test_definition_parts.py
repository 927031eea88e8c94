"""The parts of architectures against values worked out by hand."""

from __future__ import annotations

import math

import numpy as np
import pytest

from harness.definitions import parts
from harness.definitions.weights import rounded

LN3 = math.log(3)


def test_nonlinearities() -> None:
    assert parts.sigmoid(np.array([0.0, LN3])) == pytest.approx([0.5, 0.75])
    assert parts.silu(np.array([0.0, LN3])) == pytest.approx([0.0, 0.75 * LN3])
    assert parts.softplus(np.array([0.0, math.log(math.e - 1)])) == pytest.approx([math.log(2), 1.0])
    assert parts.softplus(np.array([1000.0])) == pytest.approx([1000.0])
    assert parts.softmax(np.array([[0.0, LN3], [1000.0, 1000.0]])) == pytest.approx(
        np.array([[0.25, 0.75], [0.5, 0.5]])
    )


def test_a_norm_divides_by_the_root_mean_square() -> None:
    """(3, 4) has a mean square of 12.5; with eps 12.5 it is divided by 5."""
    assert parts.rms_norm(np.array([3.0, 4.0]), np.array([1.0, 10.0]), 12.5) == pytest.approx([0.6, 8.0])


def test_a_linear_layer_is_out_by_in() -> None:
    weight = np.array([[1.0, 2.0], [3.0, 4.0], [5.0, 6.0]])

    assert parts.linear(np.array([1.0, 10.0]), weight) == pytest.approx([21.0, 43.0, 65.0])
    assert parts.linear(np.array([1.0, 10.0]), weight, np.array([1.0, 2.0, 3.0])) == pytest.approx([22.0, 45.0, 68.0])


def test_a_gated_mlp() -> None:
    """With gate = ln 3, up = 2: silu(ln 3) * 2 = 1.5 ln 3, times down = 4."""
    x, gate, up, down = np.array([1.0]), np.array([[LN3]]), np.array([[2.0]]), np.array([[4.0]])

    assert parts.swiglu(x, gate, up, down) == pytest.approx([6 * LN3])


def test_frequencies_fall_from_one() -> None:
    assert parts.frequencies(10000.0, 4) == pytest.approx([1.0, 0.01])


def test_rotation_of_halves_leaves_the_rest_and_the_first_token() -> None:
    x = np.array([[[1.0, 2.0, 3.0, 4.0, 5.0]], [[1.0, 2.0, 3.0, 4.0, 5.0]]])
    cos, sin, slow_cos, slow_sin = math.cos(1), math.sin(1), math.cos(0.5), math.sin(0.5)

    rotated = parts.rotate_halves(x, np.array([1.0, 0.5]))

    assert rotated[0, 0] == pytest.approx(x[0, 0])
    assert rotated[1, 0] == pytest.approx(
        [cos - 3 * sin, 2 * slow_cos - 4 * slow_sin, 3 * cos + sin, 4 * slow_cos + 2 * slow_sin, 5.0]
    )


def test_rotation_of_neighbours() -> None:
    x = np.array([[[0.0] * 4], [[0.0] * 4], [[1.0, 0.0, 0.0, 1.0]]])

    rotated = parts.rotate_neighbours(x, np.array([1.0, 0.5]))

    assert rotated[2, 0] == pytest.approx([math.cos(2), math.sin(2), -math.sin(1), math.cos(1)])


def test_attention_is_causal_and_shares_keys() -> None:
    """Two query heads share one key head. Scores of the second token are 0 and ln 3 (head 0), 0 and 0 (head 1)."""
    query = np.array([[[9.0], [9.0]], [[LN3], [0.0]]])
    key = np.array([[[0.0]], [[0.5]]])
    value = np.array([[[8.0, 0.0]], [[0.0, 4.0]]])

    mixed = parts.causal_attention(query, key, value, scale=2.0)

    assert mixed[0] == pytest.approx(np.array([[8.0, 0.0], [8.0, 0.0]]))
    assert mixed[1] == pytest.approx(np.array([[2.0, 3.0], [4.0, 2.0]]))


def test_the_second_pair_of_query_heads_looks_at_the_second_key_head() -> None:
    query, key = np.zeros((1, 4, 1)), np.zeros((1, 2, 1))
    value = np.array([[[1.0], [2.0]]])

    assert parts.causal_attention(query, key, value, scale=1.0)[0, :, 0] == pytest.approx([1.0, 1.0, 2.0, 2.0])


def test_the_best_come_first_and_ties_go_to_the_lower_index() -> None:
    assert parts.best(np.array([1.0, 3.0, 3.0, 2.0]), 3).tolist() == [1, 2, 3]


def test_softmax_routing() -> None:
    """Logits ln 1, ln 2, ln 5: probabilities 1/8, 2/8, 5/8."""
    logits = np.log([[1.0, 2.0, 5.0]])

    chosen, weight = parts.by_softmax(logits, 2, normalise=True)
    assert chosen.tolist() == [[2, 1]]
    assert weight == pytest.approx(np.array([[5 / 7, 2 / 7]]))
    assert parts.by_softmax(logits, 2, normalise=False)[1] == pytest.approx(np.array([[5 / 8, 2 / 8]]))


def test_sigmoid_routing_by_groups() -> None:
    """Sigmoids .75 .25 | .5 .5: equal groups but for the bias, which puts the second first and weighs nothing.

    Within it the bias puts expert 3 before expert 2. Of both groups the choice would have been 0 and 3.
    """
    logits = np.array([[LN3, -LN3, 0.0, 0.0]])
    bias = np.array([0.0, 0.0, 0.0, 0.1])

    chosen, weight = parts.by_sigmoid(logits, bias, 2, groups=2, kept=1, normalise=True, scale=3.0)
    assert chosen.tolist() == [[3, 2]]
    assert weight == pytest.approx(np.array([[1.5, 1.5]]))

    chosen, weight = parts.by_sigmoid(logits, bias, 2, groups=1, kept=1, normalise=False, scale=1.0)
    assert chosen.tolist() == [[0, 3]]
    assert weight == pytest.approx(np.array([[0.75, 0.5]]))


def test_routed_experts_are_weighted_and_summed() -> None:
    """Each expert returns 6 ln 3 times its number, as in the gated MLP above."""
    gate, up = np.full((3, 1, 1), LN3), np.full((3, 1, 1), 2.0)
    down = np.array([[[4.0]], [[8.0]], [[12.0]]])

    out = parts.routed(np.array([[1.0]]), np.array([[2, 0]]), np.array([[0.5, 2.0]]), (gate, up, down))

    assert out == pytest.approx(np.array([[(0.5 * 3 + 2 * 1) * 6 * LN3]]))


def test_rounding_is_to_nearest_and_to_even() -> None:
    """Eight digits: between 1 and 2 steps of 1/128; a half goes to the even one."""
    values = np.array([1 + 1 / 256, 1 + 3 / 256, 1 + 1.1 / 256, -(1 + 3 / 256), 0.0, 257.0])

    assert rounded(values, 8).tolist() == [1.0, 1 + 4 / 256, 1 + 2 / 256, -(1 + 4 / 256), 0.0, 256.0]
