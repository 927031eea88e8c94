"""``harness bench`` for real, on a checkpoint so small that its numbers mean nothing."""

from __future__ import annotations

import json
from pathlib import Path

import pytest
from real_stacks import NEWEST, ask, harness

from harness.bench.cases.experts_gpu import RUNS, request
from harness.bench.programs.experts_gpu import SIZES

pytestmark = [pytest.mark.integration, pytest.mark.timeout(900)]


def test_a_smoke_run_measures_and_reports(tmp_path: Path) -> None:
    options = ("--quick", "--size", "0.02", "--pairs", "1", "--out", tmp_path / "out", "--workdir", tmp_path / "work")
    cases = [word for name in ("copy", "audit", "plan") for word in ("--only", name)]
    done = harness("bench", *options, *cases)

    assert done.returncode == 0, done.stdout + done.stderr
    results = json.loads((tmp_path / "out" / "results.json").read_text())
    report = (tmp_path / "out" / "report.md").read_text()
    copies = {name: step for name, step in results["steps"].items() if "/experts/" in name or "/attention/" in name}
    assert {name.split("/")[2] for name in copies} == {"experts", "attention"}
    for series in copies.values():
        assert all(isinstance(runs, list) and runs[0]["seconds"] > 0 for runs in series.values())
    reads = results["steps"]["copy/reads"]
    assert reads["bytes_read"] >= reads["bytes_changed"] > 0
    assert results["steps"]["audit"]["exit_codes"] == [0]
    assert results["steps"]["plan/deepseek-v3"]["attempted"] == 58 * 256 * 3
    assert "numbers mean nothing" in report
    assert str(tmp_path) not in report + json.dumps(results)
    assert not (tmp_path / "work" / "bench").exists()


def test_what_is_merged_is_judged_by_somebody_else(tmp_path: Path) -> None:
    """Ours and PEFT's, from the same files: ours is rounded once, PEFT's is the same merge with more roundings."""
    options = ("--quick", "--size", "0.02", "--only", "exactness", "--out", tmp_path / "out", "--workdir", tmp_path)
    done = harness("bench", *options)

    assert done.returncode == 0, done.stdout + done.stderr
    found = json.loads((tmp_path / "out" / "results.json").read_text())["steps"]["exactness"]
    ours, peft = found["judged"]["reference"], found["judged"]["peft"]
    assert ours["changed"] > 10**6
    assert ours["exact"] / ours["changed"] > 0.9999
    assert ours["beyond"] == 0
    assert 0.5 < peft["exact"] / peft["changed"] < ours["exact"] / ours["changed"]


def test_an_unknown_case_gets_a_suggestion() -> None:
    done = harness("bench", "--only", "audits")

    assert done.returncode == 2
    assert "Did you mean 'audit'?" in done.stderr


def test_no_room_is_said_before_anything_is_measured(tmp_path: Path) -> None:
    done = harness("bench", "--size", "100000", "--out", tmp_path / "out", "--workdir", tmp_path / "work")

    assert done.returncode == 2
    assert "--workdir" in done.stderr
    assert not (tmp_path / "out").exists()


def test_every_path_that_a_gpu_is_measured_on_can_be_taken(tmp_path: Path) -> None:
    """Small and on the CPU: a fault in the program must not be found on a machine that is lent by the minute."""
    runs = [request(tmp_path / "base", code, path, steps=2) for code, path in RUNS]
    small = [{**run, "size": "small", "device": "cpu"} for run in runs]

    found = ask(NEWEST, Path(__file__).with_name("experts_gpu_program.py"), small, tmp_path)

    assert [run["tokens"] for run in found] == [SIZES["small"].batch * SIZES["small"].length] * len(RUNS)
    assert all(len(run["step_seconds"]) == 2 and min(run["step_seconds"]) > 0 for run in found)
