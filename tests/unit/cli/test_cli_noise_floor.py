"""The noise floor of each geometry is its own: what is right of one size says nothing of another's band."""

from __future__ import annotations

from pathlib import Path

from typer.testing import CliRunner

from harness.cli import app
from harness.execution.store import ResultStore
from tests.unit.report.report_samples import cell, measured


def test_geometries_are_printed_apart(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    for geometry in ("distinct", "narrow"):
        for seed in (0, 1):
            store.save(measured(cell("qwen3_moe", geometry=geometry, seed=seed)))

    done = CliRunner().invoke(app, ["noise-floor", str(tmp_path)])

    heads = [line for line in done.output.splitlines() if " on cpu: " in line]
    assert heads == ["reference, float32, distinct on cpu: 2 cells", "reference, float32, narrow on cpu: 2 cells"]
    first, _, second = done.output.partition(heads[1])
    assert "+geometry=narrow" not in first
    assert "+geometry=narrow" in second
