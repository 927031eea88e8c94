"""``harness merge`` on what real packages trained and saved, and on the same directories broken as they break."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest
import torch
from real_stacks import LINEARS, NEWEST, STANDARD, SWAPPED, Ran, harness
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.integration, pytest.mark.timeout(1500)]


def _copy(matrix_run: Ran, cell: str, place: Path) -> tuple[Path, Path]:
    """Copy a cell's base and adapter, so that a test may break them."""
    work = matrix_run.work(cell)
    return (
        Path(shutil.copytree(work / "base", place / "base")),
        Path(shutil.copytree(work / "adapter", place / "adapter")),
    )


def _refused(base: Path, adapter: Path, place: Path, *words: str, code: int = 5) -> None:
    """Merge must fail with one clear error, this exit code, and nothing new on disk."""
    before = sorted(path.name for path in place.iterdir())
    done = harness("merge", "--base", base, "--adapter", adapter, "--out", place / "merged")

    assert done.returncode == code, done.stderr
    assert sum(line.startswith("error: ") for line in done.stderr.splitlines()) == 1
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr
    assert sorted(path.name for path in place.iterdir()) == before


@pytest.mark.parametrize(
    "cell",
    [
        f"qwen3_moe/lora@{LINEARS}",
        f"qwen3_moe/lora@{SWAPPED}",
        f"deepseek_v3/lora@{NEWEST}",
        f"qwen3_5_moe/lora@{STANDARD}",
        f"qwen3_moe/lora-experts@{SWAPPED}+geometry=square-gate-up",
        f"qwen3_moe/lora-experts@{SWAPPED}+geometry=square-down",
    ],
)
def test_the_command_writes_the_bytes_that_the_cell_judged(matrix_run: Ran, cell: str, tmp_path: Path) -> None:
    work = matrix_run.work(cell)
    done = harness("merge", "--base", work / "base", "--adapter", work / "adapter", "--out", tmp_path / "merged")

    assert done.returncode == 0, done.stderr
    for path in sorted((work / "merged").glob("*.safetensors")):
        assert path.read_bytes() == (tmp_path / "merged" / path.name).read_bytes(), path.name


def test_an_adapter_from_linears_merges_into_the_base_of_a_fused_one_alike(matrix_run: Ran, tmp_path: Path) -> None:
    """Release 4.x of transformers trains Linears, 5.x fused parameters; on disk both bases are the same bytes."""
    work = matrix_run.work(f"qwen3_moe/lora@{LINEARS}")
    other = matrix_run.work(f"qwen3_moe/lora@{NEWEST}")
    done = harness("merge", "--base", other / "base", "--adapter", work / "adapter", "--out", tmp_path / "merged")

    assert done.returncode == 0, done.stderr
    assert "56/56" in done.stdout


def test_a_truncated_shard(matrix_run: Ran, tmp_path: Path) -> None:
    base, adapter = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)
    shard = base / "model-00002-of-00004.safetensors"
    shard.write_bytes(shard.read_bytes()[:-100])

    _refused(base, adapter, tmp_path, shard.name)


def test_a_corrupt_header(matrix_run: Ran, tmp_path: Path) -> None:
    base, adapter = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)
    shard = base / "model-00001-of-00004.safetensors"
    shard.write_bytes(b"\xff" * 8 + shard.read_bytes()[8:])

    _refused(base, adapter, tmp_path, shard.name)


def test_a_missing_shard(matrix_run: Ran, tmp_path: Path) -> None:
    base, adapter = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)
    (base / "model-00003-of-00004.safetensors").unlink()

    _refused(base, adapter, tmp_path, "model-00003-of-00004.safetensors")


def test_an_adapter_for_another_base(matrix_run: Ran, tmp_path: Path) -> None:
    base, _ = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)

    _refused(base, matrix_run.work(f"deepseek_v3/lora@{NEWEST}") / "adapter", tmp_path)


def test_an_adapter_for_other_sizes(matrix_run: Ran, tmp_path: Path) -> None:
    base, _ = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)
    adapter = matrix_run.work(f"qwen3_moe/lora-experts@{NEWEST}+geometry=square-gate-up") / "adapter"

    _refused(base, adapter, tmp_path)


@pytest.mark.parametrize("poison", [float("nan"), float("inf")])
def test_a_number_that_is_none_in_the_adapter(matrix_run: Ran, tmp_path: Path, poison: float) -> None:
    base, adapter = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)
    path = adapter / "adapter_model.safetensors"
    tensors = load_file(path)
    key = sorted(tensors)[3]
    tensors[key][0, 0] = poison
    save_file(tensors, path)

    _refused(base, adapter, tmp_path, "NaN or infinity", ".".join(key.split(".")[2:6]))


def test_a_pickled_adapter(matrix_run: Ran, tmp_path: Path) -> None:
    base, adapter = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)
    tensors = load_file(adapter / "adapter_model.safetensors")
    (adapter / "adapter_model.safetensors").unlink()
    torch.save(tensors, adapter / "adapter_model.bin")

    _refused(base, adapter, tmp_path, "adapter_model.bin")


def test_square_shapes_without_provenance_are_refused_until_a_flag_settles_them(
    matrix_run: Ran, tmp_path: Path
) -> None:
    """Only down_proj of a square geometry: no shape decides, and this adapter does not say which PEFT made it."""
    cell = f"qwen3_moe/lora-down-only@{SWAPPED}+geometry=square-down"
    base, adapter = _copy(matrix_run, cell, tmp_path)
    config = json.loads((adapter / "adapter_config.json").read_text())
    del config["peft_version"]
    (adapter / "adapter_config.json").write_text(json.dumps(config))

    _refused(base, adapter, tmp_path, "--io-layout")
    for layout, same in (("swapped", True), ("standard", False)):
        out = tmp_path / layout
        done = harness("merge", "--base", base, "--adapter", adapter, "--out", out, "--io-layout", layout)
        merged = matrix_run.work(cell) / "merged"
        equal = all(path.read_bytes() == (out / path.name).read_bytes() for path in merged.glob("*.safetensors"))

        assert done.returncode == 0, done.stderr
        assert equal == same


def test_an_output_that_exists_is_refused_unless_told(matrix_run: Ran, tmp_path: Path) -> None:
    base, adapter = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)
    (tmp_path / "merged").mkdir()
    (tmp_path / "merged" / "config.json").write_text("{}")

    _refused(base, adapter, tmp_path, "--overwrite", code=2)
    done = harness("merge", "--base", base, "--adapter", adapter, "--out", tmp_path / "merged", "--overwrite")

    assert done.returncode == 0, done.stderr
    assert (tmp_path / "merged" / "merge_manifest.json").exists()


def test_a_dry_run_writes_nothing(matrix_run: Ran, tmp_path: Path) -> None:
    base, adapter = _copy(matrix_run, f"qwen3_moe/lora@{STANDARD}", tmp_path)
    done = harness("merge", "--base", base, "--adapter", adapter, "--dry-run", "--json", tmp_path / "plan.json")

    assert done.returncode == 0, done.stderr
    assert json.loads((tmp_path / "plan.json").read_text())["event"] == "plan"
    assert sorted(path.name for path in tmp_path.iterdir()) == ["adapter", "base", "plan.json"]
