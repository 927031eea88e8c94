"""The merge onto the dequantised base: its bytes are judged whether or not it could be loaded again."""

from __future__ import annotations

import shutil
from pathlib import Path
from typing import Any

import pytest
from control_cells import CHECKPOINT, logits_in, make_cell, request_in, samples_in
from safetensors.torch import load_file, save_file

from harness.worker.observation import Observation
from harness.worker.stages import quantization_gap
from harness.worker.stages.evaluate import load_view, save_view
from harness.worker.stages.quantization_gap import compare_quantized
from harness.worker.stages.quantized import DEQUANTIZED, MERGED_DEQUANTIZED


@pytest.fixture
def cell(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Observation:
    """A cell whose dequantised base is the base itself, so that one right merge is right for both."""
    cell = make_cell(tmp_path)
    shutil.copytree(tmp_path / "base", tmp_path / DEQUANTIZED)
    shutil.copytree(tmp_path / "merged", tmp_path / MERGED_DEQUANTIZED)

    def right_view(*_: Any, name: str, **__: Any) -> None:
        tensors = {"logits": logits_in(tmp_path / "merged"), "gaps": load_view(tmp_path, "trained")[0]["gaps"]}
        save_view(tmp_path, name, tensors, samples_in(tmp_path / "merged"))

    monkeypatch.setattr(quantization_gap, "save_reference", right_view)
    return cell


def stage(cell: Observation) -> dict[str, bool]:
    """Run the stage and return whether its checks passed, by name."""
    with cell.stage("compare"):
        compare_quantized(cell, request_in(cell.path.parent), CHECKPOINT, vocab=12)
    assert all(check["passed"] for check in cell.data["checks"] if check["name"].startswith("control:"))
    return {check["name"]: check["passed"] for check in cell.data["checks"] if ":" not in check["name"]}


def test_a_merge_that_could_be_loaded_is_judged_by_both(cell: Observation) -> None:
    work = cell.path.parent
    save_view(work, MERGED_DEQUANTIZED, {"logits": logits_in(work / "merged")}, [])

    assert stage(cell) == {
        "applied_dequantized": True, "kl_dequantized": True, "untouched_dequantized": True,
    }  # fmt: skip
    assert cell.data["metrics"]["kl_dequantized_merged"] == 0.0


@pytest.mark.parametrize("right", [True, False])
def test_a_merge_that_could_not_be_loaded_is_judged_by_its_bytes(cell: Observation, right: bool) -> None:
    work = cell.path.parent
    if not right:
        values = load_file(work / DEQUANTIZED / "model.safetensors")
        save_file(values, work / MERGED_DEQUANTIZED / "model.safetensors", metadata={"format": "pt"})

    assert stage(cell) == {"applied_dequantized": right, "untouched_dequantized": True}
    assert cell.data["stages"]["compare"]["ended"] == "completed"
    assert cell.data["metrics"]["kl_quantization_gap_dequantized"] == 0.0
