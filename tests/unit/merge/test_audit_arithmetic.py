"""The quick ways of the audit, each against a slow one: sums in reused buffers, counts in lanes, comparisons of memory.

And what it leaves as it was.
"""

from __future__ import annotations

import os
from pathlib import Path

import numpy as np
import pytest
import torch
from format_samples import HIDDEN, Numbers, delta, pair, small_base, write_adapter, write_base
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.merge import InputRefusedError, audit
from harness.merge.adapter.adapter import LoraPair
from harness.merge.auditing import walk
from harness.merge.auditing.equality import decoded_alike, identical, same
from harness.merge.auditing.expected import ExpectedValues, count
from harness.merge.auditing.merged_checkpoint import MergedCheckpoint, open_merged
from harness.merge.errors import InputChangedError
from harness.merge.files.safetensors_file import TensorInfo
from harness.merge.plan.merge_plan import PairContribution
from harness.merge.write.buffers import Buffers

Q = "model.layers.0.self_attn.q_proj"


def use_of(rank: int, scaling: float, *, swapped: bool) -> PairContribution:
    info = TensorInfo(dtype="F32", shape=(1, 1), start=0, stop=4)
    return PairContribution(
        pair=LoraPair(module=Q, lora_A=info, lora_B=info), name=Q, rank=rank, scaling=scaling, swapped=swapped
    )


@settings(max_examples=60, deadline=None)
@given(st.integers(1, 40), st.integers(1, 40), st.integers(1, 9), st.sampled_from([2.0, 0.5, 1.0, -4.0, 1.5, 0.3]),
       st.booleans(), st.sampled_from([torch.float32, torch.bfloat16, torch.float16]), st.integers(0, 99))  # fmt: skip
def test_base_and_delta_against_float64(
    rows: int, columns: int, rank: int, scaling: float, swapped: bool, dtype: torch.dtype, seed: int
) -> None:
    """To half a unit of the dtype and what float32 loses, whichever way the scaling takes.

    Twice in the same buffers.
    """
    random, work = np.random.default_rng(seed), ExpectedValues(Buffers(torch.device("cpu")))
    contribution = use_of(rank, scaling, swapped=swapped)
    for _ in range(2):
        base = torch.tensor(random.standard_normal((rows, columns))).to(dtype)
        first, second = (
            torch.tensor(random.standard_normal(shape).astype(np.float32))
            for shape in ((1, rank, rows if swapped else columns), (1, columns if swapped else rows, rank))
        )
        product = scaling * second[0].double() @ first[0].double()
        exact = base.double() + (product.T if swapped else product)

        found = work.added(base, (first, second), contribution, 0, 0, dtype)
        change = work.delta((first, second), contribution, 0, 0, rows, columns)

        half = torch.finfo(dtype).eps / 2
        assert bool(((found.double() - exact).abs() <= half * exact.abs() + 2.0**-18 * rank * abs(scaling)).all())
        assert torch.allclose(change.double(), exact - base.double(), rtol=1e-5, atol=1e-5 * abs(scaling))


def test_rounding_the_delta_first() -> None:
    """1 + 2^-8 ties to even; the delta 2^-8 + 2^-17 is above the tie, unless it is rounded to bfloat16 first."""
    base, work = torch.ones(1, 1, dtype=torch.bfloat16), ExpectedValues(Buffers(torch.device("cpu")))
    change = torch.tensor([[2.0**-8 + 2.0**-17]])

    assert float(work.once(base, change, torch.bfloat16)) == 1 + 2.0**-7
    assert float(work.twice(base, change)) == 1.0


@settings(max_examples=30, deadline=None)
@given(st.sampled_from([1, 3, 4, 8191, 32768, 32769, 200003]), st.sampled_from([np.int16, np.int32]), st.booleans())
def test_counts_in_lanes(size: int, kind: type[np.generic], full: bool) -> None:
    mask = np.ones(size, dtype=kind) if full else (np.random.default_rng(size).random(size) < 0.3).astype(kind)

    assert count(torch.tensor(mask)) == int(mask.astype(np.int64).sum())


def test_the_same_numbers_and_the_same_bytes() -> None:
    zero, other, nan = torch.zeros(2, 3), -torch.zeros(2, 3), torch.full((2, 3), torch.nan)
    late = zero.clone()
    late[1, 2] = 1

    assert not identical(zero, other)
    assert same(zero, other)
    assert same(nan, nan.clone())
    assert not same(zero, late)
    assert not same(zero, nan)


def test_decoded_values_give_way_to_two_roundings_and_no_more() -> None:
    value, load = torch.tensor([[0.7, -0.3, 0.0]]), torch.bfloat16

    assert decoded_alike(value, value * (1 + 2.0**-23), load)
    assert decoded_alike(value, value.bfloat16(), load)
    assert decoded_alike(value, value.bfloat16().float(), load)
    assert not decoded_alike(value, value.half().float(), load)
    assert not decoded_alike(value, value * (1 + 2.0**-20), load)
    assert not decoded_alike(value, value * torch.nan, load)
    assert not decoded_alike(value, (value * 1.01).bfloat16(), load)


@pytest.fixture
def folders(tmp_path: Path) -> tuple[Path, Path, Path]:
    numbers = Numbers()
    tensors, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    right = {**tensors, f"{Q}.weight": (tensors[f"{Q}.weight"].double() + torch.tensor(delta(lora, Q))).float()}
    return (
        write_base(tmp_path / "b", tensors),
        write_adapter(tmp_path / "a", lora),
        write_base(tmp_path / "m", right),
    )


def test_torch_keeps_its_threads(folders: tuple[Path, Path, Path]) -> None:
    before = torch.get_num_threads()
    torch.set_num_threads(3)
    try:
        seen: list[int] = []
        report = audit(*folders, progress=lambda _done, _total: seen.append(torch.get_num_threads()))

        assert report.ok
        assert seen == [1]
        assert torch.get_num_threads() == 3
    finally:
        torch.set_num_threads(before)


def test_any_number_of_threads_says_the_same(folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch) -> None:
    reports = []
    for threads, size in ((1, 1 << 25), (4, 1)):
        monkeypatch.setattr(walk, "JOB_BYTES", size)
        monkeypatch.setattr(walk, "default_threads", lambda number=threads: number)
        reports.append(audit(*folders).to_json())

    assert reports[0] == reports[1]


@pytest.mark.parametrize("side", ["b", "m"])
def test_a_shard_replaced_after_its_header_was_read_is_refused_by_name(
    folders: tuple[Path, Path, Path], side: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The other file has the same size and other names, so that its bytes would be taken for those of other tensors."""
    (path,) = (folders[0].parent / side).glob("*.safetensors")

    def replaced(merged: Path) -> MergedCheckpoint:
        found = open_merged(merged)
        raw = path.read_bytes()
        path.write_bytes(raw.replace(b"q_proj", b"k_proj", 1))
        assert path.stat().st_size == len(raw)
        return found

    monkeypatch.setattr(walk, "open_merged", replaced)
    of = {"b": "", "m": " of the merged checkpoint"}[side]

    with pytest.raises(InputChangedError, match=f"^{path.name}{of} is no longer the file that was planned with"):
        audit(*folders)


def test_a_pipe_in_a_shards_place_is_refused_and_not_waited_for(
    folders: tuple[Path, Path, Path], monkeypatch: pytest.MonkeyPatch
) -> None:
    (path,) = folders[2].glob("*.safetensors")

    def replaced(merged: Path) -> MergedCheckpoint:
        found = open_merged(merged)
        path.unlink()
        os.mkfifo(path)
        return found

    monkeypatch.setattr(walk, "open_merged", replaced)

    with pytest.raises(InputChangedError, match="of the merged checkpoint is no longer the file"):
        audit(*folders)


def test_nan_in_the_adapter_is_refused_by_name(folders: tuple[Path, Path, Path], tmp_path: Path) -> None:
    lora = pair(Numbers(), Q, 7, HIDDEN)
    lora[f"{Q}.lora_B.weight"][3, 1] = torch.inf

    with pytest.raises(InputRefusedError, match=r"lora_B of .*q_proj holds NaN or infinity"):
        audit(folders[0], write_adapter(tmp_path / "broken", lora), folders[2])


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_nan_in_the_merged_checkpoint_is_found(tmp_path: Path, dtype: torch.dtype) -> None:
    numbers = Numbers()
    tensors, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    tensors[f"{Q}.weight"] = tensors[f"{Q}.weight"].to(dtype)
    base, adapter = write_base(tmp_path / "b", tensors), write_adapter(tmp_path / "a", lora)
    broken = (tensors[f"{Q}.weight"].double() + torch.tensor(delta(lora, Q))).to(dtype)
    broken[6, 5] = torch.nan

    report = audit(base, adapter, write_base(tmp_path / "m", {**tensors, f"{Q}.weight": broken}))

    assert [(row.key, row.verdict, row.detail) for row in report.faults] == [
        (f"{Q}.weight", "wrong", "holds NaN or infinity")
    ]


@pytest.mark.parametrize("place", ["q_proj", "norm", "both"])
def test_values_that_overflow_in_the_merged_dtype_are_found(tmp_path: Path, place: str) -> None:
    """70000 fits bfloat16 and not float16."""
    numbers, norm = Numbers(), "model.layers.0.input_layernorm.weight"
    tensors, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    tensors = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    lora[f"{Q}.lora_B.weight"][2] = 0
    if place != "norm":
        tensors[f"{Q}.weight"][2, 3] = 70000
    if place != "q_proj":
        tensors[norm][1] = -70000
    right = {key: tensor.half() for key, tensor in tensors.items()}
    copy = dict(right)
    right[f"{Q}.weight"] = (tensors[f"{Q}.weight"].double() + torch.tensor(delta(lora, Q))).half()
    base, adapter = write_base(tmp_path / "b", tensors), write_adapter(tmp_path / "a", lora)

    found = [
        {row.key: (row.verdict, row.detail) for row in audit(base, adapter, write_base(tmp_path / name, merged)).rows}
        for name, merged in (("right", right), ("copy", copy))
    ]

    for verdicts in found:
        if place != "norm":
            assert verdicts[f"{Q}.weight"] == ("wrong", "holds NaN or infinity")
        if place != "q_proj":
            assert verdicts[norm] == ("changed", "holds NaN or infinity")


def test_infinity_that_the_base_has_is_kept(tmp_path: Path) -> None:
    numbers, norm = Numbers(), "model.layers.0.input_layernorm.weight"
    tensors, lora = small_base(numbers), pair(numbers, Q, 7, HIDDEN)
    tensors[norm][1] = torch.inf
    right = {key: tensor.bfloat16() for key, tensor in tensors.items()}
    right[f"{Q}.weight"] = (tensors[f"{Q}.weight"].double() + torch.tensor(delta(lora, Q))).bfloat16()

    report = audit(
        write_base(tmp_path / "b", tensors), write_adapter(tmp_path / "a", lora), write_base(tmp_path / "m", right)
    )

    assert report.ok


def test_a_trained_module_that_overflows_is_found(tmp_path: Path) -> None:
    numbers, head = Numbers(), "lm_head.weight"
    tensors, trained = small_base(numbers), numbers(11, HIDDEN)
    trained[4, 2] = 70000
    lora = {**pair(numbers, Q, 7, HIDDEN), head: trained}
    base, adapter = (
        write_base(tmp_path / "b", tensors),
        write_adapter(tmp_path / "a", lora, modules_to_save=["lm_head"]),
    )

    report = audit(base, adapter, write_base(tmp_path / "m", {**tensors, head: trained.half()}))

    assert {row.key: (row.verdict, row.detail) for row in report.rows}[head] == ("wrong", "holds NaN or infinity")
