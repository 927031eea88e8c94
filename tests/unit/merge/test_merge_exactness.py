"""How close merged elements are to the correctly rounded ones, at the sizes and magnitudes of real models.

Rounding is done here in float64.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from merge_samples import MANTISSA, TORCH, Sample, Spec, build
from safetensors.torch import load_file

from harness.merge import merge, plan_merge

LOWEST = {"float32": -126, "bfloat16": -126, "float16": -14}


def spacing(values: np.ndarray, dtype: str) -> np.ndarray:
    """The unit in the last place of ``dtype`` at each value's magnitude."""
    exponents = np.maximum(np.frexp(np.abs(values))[1] - 1, LOWEST[dtype])
    return np.ldexp(1.0, exponents - MANTISSA[TORCH[dtype]])


def rounded(values: np.ndarray, dtype: str) -> np.ndarray:
    """The nearest number of ``dtype``, ties to even. Dividing by a power of two is exact, and so is rint."""
    unit = spacing(values, dtype)
    return np.rint(values / unit) * unit


def elements(sample: Sample, out: Path) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """(base, exact delta, merged) of every element that an adapter covers, in float64."""
    merged = {key: value for path in out.glob("*.safetensors") for key, value in load_file(path).items()}
    columns: tuple[list[np.ndarray], ...] = ([], [], [])
    for key, delta in sample.deltas.items():
        for column, values in zip(
            columns, (sample.tensors[key].double().numpy(), delta, merged[key].double().numpy()), strict=True
        ):
            column.append(values.reshape(-1))
    base, delta, written = (np.concatenate(column) for column in columns)
    return base, delta, written


@pytest.fixture(params=["bfloat16", "float16"])
def realistic(request: pytest.FixtureRequest, tmp_path: Path) -> tuple[Sample, str]:
    """Some four million elements; weights about 1, deltas from far below rounding to as large as the weights."""
    return build(
        tmp_path,
        Spec(experts=4, hidden=512, width=384, rank=16, layers=2, dtype=request.param, strength=0.02),
    ), request.param


def test_nearly_every_element_is_the_correctly_rounded_one(realistic: tuple[Sample, str], tmp_path: Path) -> None:
    sample, dtype = realistic
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    base, delta, written = elements(sample, tmp_path / "out")
    exact = base + delta
    unit = spacing(np.maximum(np.maximum(np.abs(base), np.abs(delta)), np.abs(exact)), dtype)
    share = np.mean(written == rounded(exact, dtype))
    assert base.size > 4_000_000
    assert np.mean(written != base) > 0.5  # most elements move, so the share says something
    assert share >= 0.9999
    assert np.max(np.abs(written - exact) / unit) <= 1


def test_in_float64_every_element_is_the_correctly_rounded_one(realistic: tuple[Sample, str], tmp_path: Path) -> None:
    sample, dtype = realistic
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "out", accumulate="float64")

    base, delta, written = elements(sample, tmp_path / "out")
    exact = base + delta
    assert np.max(np.abs(written - exact) / spacing(exact, dtype)) <= 0.5
    assert np.array_equal(
        written, rounded(exact, dtype)
    )  # the float64 sums are close enough that not one tie is misjudged here


def test_float64_keeps_what_float32_loses_where_terms_cancel(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(dtype="float32", experts=4, hidden=64, width=48, rank=8))
    for accumulate in ("float32", "float64"):
        merge(plan_merge(sample.base, sample.adapter), tmp_path / accumulate, accumulate=accumulate)

    base, delta, single = elements(sample, tmp_path / "float32")
    _, _, double = elements(sample, tmp_path / "float64")
    exact = base + delta
    assert np.max(np.abs(double - exact) / spacing(exact, "float32")) <= 0.5
    assert np.max(np.abs(single - exact) / spacing(exact, "float32")) > 1


def test_the_bytes_do_not_depend_on_the_number_of_threads(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(experts=8, hidden=192, width=160, rank=4, layers=3, shards=4, dtype="bfloat16"))
    for threads in (1, 2, 5):
        merge(plan_merge(sample.base, sample.adapter), tmp_path / str(threads), threads=threads)

    one, *others = (
        {path.name: path.read_bytes() for path in (tmp_path / str(threads)).iterdir() if path.is_file()}
        for threads in (1, 2, 5)
    )
    assert all(other == one for other in others)


def test_torchs_own_threads_are_as_they_were(tmp_path: Path) -> None:
    sample = build(tmp_path)
    before = torch.get_num_threads()

    merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert torch.get_num_threads() == before
