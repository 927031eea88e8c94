"""The counter-based generator: published reference values, moments, and rounding against torch's own."""

import hashlib

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from harness.worker.checkpoints.random_bits import random_float32, random_integers, splitmix64, to_bfloat16_bytes


def test_splitmix64_has_the_published_reference_outputs() -> None:
    """The first outputs for seed 0 stand in the reference implementation's test vectors (Vigna's splitmix64.c)."""
    outputs = splitmix64(0, 3)

    assert [int(value) for value in outputs] == [0xE220A8397B1DCDAF, 0x6E789E6AA1B965F4, 0x06C45D188009454F]


def test_an_element_depends_on_its_position_only() -> None:
    long, short = random_integers(7, "w", 100), random_integers(7, "w", 10)

    assert np.array_equal(long[:10], short)


@pytest.mark.parametrize(("seed", "name"), [(1, "w"), (0, "v")])
def test_seed_and_name_select_the_numbers(seed: int, name: str) -> None:
    assert not np.array_equal(random_integers(seed, name, 20), random_integers(0, "w", 20))


def test_moments_are_those_of_a_sum_of_four_uniform_words() -> None:
    numbers = random_integers(0, "moments", 200_000).astype(np.float64)

    assert abs(numbers.mean()) < 4 * 37837 / np.sqrt(len(numbers))
    assert numbers.std() == pytest.approx(65536 / np.sqrt(3), rel=0.01)


def test_scaling_is_exact_in_float32() -> None:
    integers, floats = random_integers(3, "x", 1000), random_float32(3, "x", 1000, 2)

    assert np.array_equal(floats.astype(np.float64) * 2.0**17, integers.astype(np.float64))


def test_bytes_are_pinned() -> None:
    """A change here changes every checkpoint, and with it every recorded base_sha256."""
    data = random_float32(0, "model.embed_tokens.weight", 64, 0).tobytes()

    assert hashlib.sha256(data).hexdigest()[:16] == "5dc0a3ae9c0eafd9"


@given(st.lists(st.floats(width=32, allow_nan=False, allow_infinity=False), min_size=1, max_size=50))
def test_bfloat16_rounds_as_torch_does(values: list[float]) -> None:
    array = np.array(values, dtype=np.float32)
    expected = torch.from_numpy(array.copy()).to(torch.bfloat16).view(torch.int16).numpy().tobytes()

    assert to_bfloat16_bytes(array) == expected
