"""``harness audit`` and ``harness adapter`` on what real packages trained, saved and merged."""

from __future__ import annotations

import json
import shutil
from pathlib import Path
from typing import Any

import pytest
from real_merges import merge_with_peft
from real_stacks import LINEARS, NEWEST, STANDARD, SWAPPED, Ran, harness
from safetensors.torch import load_file, save_file

pytestmark = [pytest.mark.integration, pytest.mark.nightly, pytest.mark.timeout(1500)]


def _audit(base: Path, adapter: Path, merged: Path, *options: str, code: int) -> dict[str, Any]:
    """Run the command; return its JSON report."""
    place = merged.parent / f"{merged.name}.audit.json"
    done = harness("audit", "--base", base, "--adapter", adapter, "--merged", merged, "--json", place, *options)

    assert done.returncode == code, done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    report: dict[str, Any] = json.loads(place.read_text())
    assert report["sentence"] in done.stdout
    return report


def _verdicts(report: dict[str, Any]) -> dict[str, set[str]]:
    found: dict[str, set[str]] = {}
    for row in report["rows"]:
        if row["verdict"] not in {"same", "changed"}:
            found.setdefault(row["kind"], set()).add(row["verdict"])
    return found


@pytest.mark.parametrize("stack", [LINEARS, SWAPPED, STANDARD, NEWEST])
@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_merge_by_peft_is_recognised(matrix_run: Ran, tmp_path: Path, stack: str, dtype: str) -> None:
    work = matrix_run.work(f"qwen3_moe/lora@{stack}")
    merged = merge_with_peft(stack, work / "base", work / "adapter", tmp_path / "merged", dtype=dtype)

    report = _audit(work / "base", work / "adapter", merged, code=0)

    assert set().union(*_verdicts(report).values()) <= {"applied", "indistinguishable"}
    assert report["missing_files"] == []
    assert report["sentence"].endswith("→ the adapter is merged")
    if dtype == "bfloat16":
        assert report["dtype_changes"]


def test_peft_rounds_twice_in_bfloat16(matrix_run: Ran, tmp_path: Path) -> None:
    work = matrix_run.work(f"qwen3_moe/lora@{NEWEST}+dtype=bf16")
    merged = merge_with_peft(NEWEST, work / "base", work / "adapter", tmp_path / "merged", dtype="bfloat16")

    report = _audit(work / "base", work / "adapter", merged, code=0)

    details = {row.get("detail") for row in report["rows"] if row["kind"] == "expert"}
    assert "bf16-double-rounded" in details
    assert details <= {"bf16-double-rounded", "1-ulp", "bit-exact", "zero-delta", "below-rounding"}


def test_experts_that_the_base_stores_fused(matrix_run: Ran, tmp_path: Path) -> None:
    """Published qwen3_5_moe is fused under another prefix.

    transformers writes it in its own form, without the extra layers.
    """
    work = matrix_run.work(f"qwen3_5_moe/lora@{STANDARD}")
    merged = merge_with_peft(STANDARD, work / "base", work / "adapter", tmp_path / "merged")

    report = _audit(work / "base", work / "adapter", merged, code=1)

    assert {"applied"} <= set().union(*_verdicts(report).values()) <= {"applied", "indistinguishable"}
    changed = [row for row in report["rows"] if row["verdict"] == "changed"]
    assert {row["detail"] for row in changed} == {"absent"}
    assert all(row["key"].startswith("mtp.") for row in changed)


def test_a_merge_without_its_tokenizer(matrix_run: Ran, tmp_path: Path) -> None:
    work = matrix_run.work(f"qwen3_moe/lora@{STANDARD}")
    merged = merge_with_peft(STANDARD, work / "base", work / "adapter", tmp_path / "merged", tokenizer=False)

    report = _audit(work / "base", work / "adapter", merged, code=1)

    assert {"tokenizer.json", "tokenizer_config.json", "the chat template"} <= set(report["missing_files"])
    assert not any(row["verdict"] != "same" for row in report["rows"] if row["kind"] == "other")


def test_our_own_merge_and_a_copy_of_the_base(matrix_run: Ran) -> None:
    work = matrix_run.work(f"deepseek_v3/lora@{SWAPPED}")

    right = _audit(work / "base", work / "adapter", work / "merged", code=0)
    copy = _audit(work / "base", work / "adapter", work / "base", code=1)

    assert set().union(*_verdicts(right).values()) == {"applied"}
    assert set().union(*_verdicts(copy).values()) == {"untouched"}
    assert copy["sentence"].endswith("the whole adapter was dropped: this is the base")


def test_dropped_experts_of_a_real_merge(matrix_run: Ran, tmp_path: Path) -> None:
    work = matrix_run.work(f"qwen3_moe/lora@{STANDARD}")
    merged = merge_with_peft(STANDARD, work / "base", work / "adapter", tmp_path / "merged")
    base = {key: tensor for path in (work / "base").glob("*.safetensors") for key, tensor in load_file(path).items()}
    for path in merged.glob("*.safetensors"):
        tensors = load_file(path)
        save_file({key: base[key] if ".experts." in key else tensor for key, tensor in tensors.items()}, path)

    report = _audit(work / "base", work / "adapter", merged, code=1)

    assert _verdicts(report) == {"attention": {"applied"}, "expert": {"untouched"}}
    assert report["sentence"].endswith("→ the expert adapter was dropped")


def test_the_wrong_packing_of_a_real_adapter(matrix_run: Ran, tmp_path: Path) -> None:
    work = matrix_run.work(f"qwen3_moe/lora@{NEWEST}")
    paths = ("--base", work / "base", "--adapter", work / "adapter", "--out", tmp_path / "merged")
    assert harness("merge", *paths, "--b-packing", "grouped_by_expert").returncode == 0

    report = _audit(work / "base", work / "adapter", tmp_path / "merged", code=1)

    assert _verdicts(report) == {"attention": {"applied"}, "expert": {"scrambled"}}
    assert "lora_B read as grouped_by_expert" in report["sentence"]
    assert _verdicts(
        _audit(work / "base", work / "adapter", tmp_path / "merged", "--b-packing", "grouped_by_expert", code=0)
    ) == {"attention": {"applied"}, "expert": {"applied"}}


def test_the_wrong_io_layout_of_a_real_square_adapter(matrix_run: Ran, tmp_path: Path) -> None:
    work = matrix_run.work(f"qwen3_moe/lora-down-only@{SWAPPED}+geometry=square-down")
    paths = ("--base", work / "base", "--adapter", work / "adapter", "--out", tmp_path / "merged")
    assert harness("merge", *paths, "--io-layout", "standard").returncode == 0

    report = _audit(work / "base", work / "adapter", tmp_path / "merged", code=1)

    assert _verdicts(report)["expert"] == {"scrambled"}
    assert "io layout read as standard" in report["sentence"]


def test_a_corrupt_merge_is_refused(matrix_run: Ran, tmp_path: Path) -> None:
    work = matrix_run.work(f"qwen3_moe/lora@{STANDARD}")
    merged = Path(shutil.copytree(work / "merged", tmp_path / "merged"))
    shard = next(merged.glob("*.safetensors"))
    shard.write_bytes(shard.read_bytes()[:-50])

    done = harness("audit", "--base", work / "base", "--adapter", work / "adapter", "--merged", merged)

    assert done.returncode == 5
    assert shard.name in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("made", "options", "used"),
    [
        (SWAPPED, ("--to-io-layout", "standard"), STANDARD),
        (STANDARD, ("--to-io-layout", "swapped"), SWAPPED),
        (LINEARS, ("--to-experts", "fused"), NEWEST),
        (LINEARS, ("--to-experts", "fused", "--to-io-layout", "swapped"), SWAPPED),
        (STANDARD, ("--to-experts", "per-expert"), LINEARS),
    ],
)
def test_a_converted_adapter_is_loaded_by_the_peft_it_is_for(
    matrix_run: Ran, tmp_path: Path, made: str, options: tuple[str, ...], used: str
) -> None:
    """The judge is the audit with the adapter as it was trained."""
    work = matrix_run.work(f"qwen3_moe/lora@{made}")
    done = harness("adapter", "convert", work / "adapter", "--out", tmp_path / "converted", *options)
    assert done.returncode == 0, done.stderr
    merged = merge_with_peft(used, work / "base", tmp_path / "converted", tmp_path / "merged")

    report = _audit(work / "base", work / "adapter", merged, code=0)

    assert set().union(*_verdicts(report).values()) == {"applied"}


@pytest.mark.parametrize(
    ("stack", "there", "back"),
    [
        (SWAPPED, ("--to-io-layout", "standard"), ("--to-io-layout", "swapped")),
        (NEWEST, ("--to-b-packing", "grouped_by_expert"), ("--to-b-packing", "rank_major")),
        (STANDARD, ("--to-experts", "per-expert"), ("--to-experts", "fused")),
        (SWAPPED, ("--to-experts", "per-expert"), ("--to-experts", "fused", "--to-io-layout", "swapped")),
    ],
)
def test_the_way_back_gives_the_bytes_that_peft_wrote(
    matrix_run: Ran, tmp_path: Path, stack: str, there: tuple[str, ...], back: tuple[str, ...]
) -> None:
    adapter = matrix_run.work(f"qwen3_moe/lora@{stack}") / "adapter"
    first = harness("adapter", "convert", adapter, "--out", tmp_path / "there", *there)
    second = harness("adapter", "convert", tmp_path / "there", "--out", tmp_path / "back", *back)

    assert (first.returncode, second.returncode) == (0, 0), first.stderr + second.stderr
    assert {path.name for path in (tmp_path / "back").iterdir()} == {path.name for path in adapter.iterdir()}
    for path in adapter.iterdir():
        assert (tmp_path / "back" / path.name).read_bytes() == path.read_bytes(), path.name


def test_inspection_of_a_real_adapter(matrix_run: Ran, tmp_path: Path) -> None:
    work = matrix_run.work(f"deepseek_v3/lora@{SWAPPED}")
    other = matrix_run.work(f"qwen3_moe/lora@{STANDARD}")
    place = tmp_path / "facts.json"
    done = harness("adapter", "inspect", work / "adapter", "--base", work / "base", "--json", place)

    facts = json.loads(place.read_text())
    assert done.returncode == 0, done.stderr
    assert (facts["peft_version"], facts["experts"], facts["io_layout"]) == (
        "0.18.1", "fused", {"value": "swapped", "by": "shape"},
    )  # fmt: skip
    assert set(facts["by_kind"]) == {"attention", "expert", "shared_expert", "dense"}
    assert facts["zero_deltas"] == []
    assert harness("adapter", "inspect", work / "adapter", "--base", other / "base").returncode == 1
