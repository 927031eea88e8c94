"""The checkpoints and adapters that are measured: real formats at the sizes asked for, which the engine accepts."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors import safe_open
from safetensors.torch import load_file

from harness.bench import adapters
from harness.bench.checkpoints import bfloat16_bits, header, split, write_adapter, write_base, write_hollow
from harness.bench.layouts import DeepseekV3, Qwen3Moe, qwen3_moe_of
from harness.merge import plan_merge

TINY = Qwen3Moe(layers=2, experts=4, hidden=32, width=16, heads=2, kv_heads=1, head_dim=16, vocab=64)


def test_bits_are_those_of_torch() -> None:
    values = np.random.default_rng(0).standard_normal(10_000, dtype=np.float32)
    expected = torch.from_numpy(values).bfloat16().view(torch.int16).numpy().astype(np.uint16)

    assert np.array_equal(bfloat16_bits(values), expected)


@pytest.mark.parametrize("size", [20_000_000, 125_000_000, 2_000_000_000, 16_000_000_000])
def test_a_size_is_met(size: int) -> None:
    layout = qwen3_moe_of(size)

    assert layout.experts == 128
    assert layout.layers >= 3
    assert abs(layout.size - size) / size < 0.16


def test_a_base_is_a_checkpoint(tmp_path: Path) -> None:
    write_base(tmp_path / "base", TINY, seed=0)
    tensors = {
        key: tensor for path in (tmp_path / "base").glob("*.safetensors") for key, tensor in load_file(path).items()
    }
    index = json.loads((tmp_path / "base" / "model.safetensors.index.json").read_text())

    assert {key: tuple(tensor.shape) for key, tensor in tensors.items()} == dict(TINY.tensors())
    assert {tensor.dtype for tensor in tensors.values()} == {torch.bfloat16}
    assert index["weight_map"].keys() == tensors.keys()
    assert index["metadata"]["total_size"] == TINY.size
    assert len(list((tmp_path / "base").glob("*.safetensors"))) == 6
    assert 0.015 < torch.cat([tensor.flatten() for tensor in tensors.values()]).float().std() < 0.025


def test_shards_keep_order_and_share_the_bytes() -> None:
    entries = [(str(number), (10,)) for number in range(12)]
    parts = split(entries, 4)

    assert [entry for part in parts for entry in part] == entries
    assert [len(part) for part in parts] == [3, 3, 3, 3]


def test_a_header_is_aligned_and_closed() -> None:
    raw, data = header([("a", (2, 3)), ("b", (5,))], "BF16", 2)
    described = json.loads(raw[8:])

    assert int.from_bytes(raw[:8], "little") == len(raw) - 8
    assert len(raw) % 8 == 0
    assert data == 22
    assert described["b"] == {"dtype": "BF16", "shape": [5], "data_offsets": [12, 22]}


@pytest.mark.parametrize(("kind", "changed"), [("of_experts", 2 * 4 * 3), ("of_attention", 2 * 4)])
def test_the_engine_accepts_the_adapters(tmp_path: Path, kind: str, changed: int) -> None:
    write_base(tmp_path / "base", TINY, seed=0)
    write_adapter(tmp_path / "adapter", getattr(adapters, kind)(TINY), seed=1)
    with safe_open(tmp_path / "adapter" / "adapter_model.safetensors", framework="pt") as file:
        lora_B = file.get_tensor(next(key for key in file.keys() if ".lora_B." in key))  # noqa: N806, SIM118

    assert plan_merge(tmp_path / "base", tmp_path / "adapter").attempted == changed
    assert 0.002 < lora_B.std() < 0.004


def test_a_hollow_checkpoint_can_be_planned_with_and_takes_no_room(tmp_path: Path) -> None:
    layout = DeepseekV3(layers=5, dense=1, experts=8)
    claimed = write_hollow(tmp_path / "base", tmp_path / "adapter", layout, adapters.of_single_experts(layout))
    files = [path for path in tmp_path.rglob("*") if path.is_file()]

    assert plan_merge(tmp_path / "base", tmp_path / "adapter").attempted == 4 * 8 * 3
    assert claimed > 5e9
    assert sum(path.stat().st_blocks * 512 for path in files) < 5e6
    assert sum(1 for _ in DeepseekV3().tensors()) > 46_000
