"""What a user gets for a mistake, and for Ctrl-C: one clear error, a documented exit code, nothing lost."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import psutil
import pytest
from real_stacks import STANDARD, harness

pytestmark = [pytest.mark.integration, pytest.mark.timeout(600)]

ROOT = Path(__file__).resolve().parents[2]


KEPT = {"MOE_LORA_HARNESS_RESULTS_SIZE": "1 GiB"}
"""Lets a command keep results and reuse them, which no other test does (``conftest.py``)."""


def _fails(code: int, *words: str, arguments: tuple[str | Path, ...], cwd: Path | None = None) -> None:
    done = harness(*arguments, cwd=cwd)

    assert done.returncode == code, done.stdout + done.stderr
    assert "error: " in done.stderr
    assert "Traceback" not in done.stderr
    for word in words:
        assert word in done.stderr


def test_what_can_be_no_model_gets_a_suggestion() -> None:
    _fails(2, "'qwen3-moee'", "Did you mean 'qwen3_moe'?", arguments=("run", "--model", "qwen3-moee"))


def test_a_model_that_nobody_knows_runs_nothing_and_keeps_nothing(tmp_path: Path) -> None:
    """It could be one of another release, so the installed one is asked."""
    _fails(
        2,
        "'qwen3_moee'",
        "has no such model_type",
        "Did you mean 'qwen3_moe'?",
        arguments=("run", "--model", "qwen3_moee", "--out", tmp_path / "out"),
    )

    assert not (tmp_path / "out").exists()


def test_a_model_without_experts_is_unsupported_in_a_sentence(tmp_path: Path) -> None:
    done = harness("run", "--model", "llama", "--out", tmp_path)

    assert done.returncode == 1, done.stdout + done.stderr
    assert "1 unsupported and undeclared" in done.stdout
    assert "reason    LlamaForCausalLM has no routed experts that the harness can judge" in done.stdout
    assert "Traceback" not in done.stdout + next(tmp_path.rglob("*.log")).read_text()


def test_an_unknown_recipe_gets_a_suggestion() -> None:
    _fails(
        2, "'lora-atention'", "'lora-attention'", arguments=("run", "--model", "qwen3_moe", "--recipe", "lora-atention")
    )


def test_a_version_that_no_index_has(tmp_path: Path) -> None:
    _fails(
        2, "99.9.9", "peft", arguments=("run", "--model", "qwen3_moe", "--peft", "99.9.9", "--out", tmp_path / "out")
    )

    assert not (tmp_path / "out" / "cells").exists() or not list((tmp_path / "out" / "cells").rglob("*.json"))


def test_a_malformed_version() -> None:
    _fails(2, "5.5.x", arguments=("run", "--model", "qwen3_moe", "--transformers", "5.5.x"))


def test_versions_that_exist_and_contradict_each_other_are_unresolvable(tmp_path: Path) -> None:
    """Release 4.57.6 of transformers wants huggingface-hub below 1; this release does not."""
    done = harness(
        "run", "--model", "qwen3_moe", "--transformers", "4.57.6", "--pin", "huggingface-hub==1.33.0", "--out", tmp_path
    )
    [path] = (tmp_path / "cells").rglob("*.json")
    result = json.loads(path.read_text())

    assert done.returncode == 1, done.stdout + done.stderr
    assert (result["outcome"], result["stage"]) == ("unresolvable", "resolve")
    assert "transformers==4.57.6" in result["reason"]
    assert "huggingface-hub" in result["reason"]


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("schema = 1\nstacks = [", ()),
        ("schema = 1\nstakcs = []\n", ("stakcs", "stacks")),
        ("schema = 2\n", ("schema",)),
    ],
)
def test_a_malformed_matrix_toml(tmp_path: Path, text: str, words: tuple[str, ...]) -> None:
    (tmp_path / "matrix.toml").write_text(text)

    _fails(2, "matrix.toml", *words, arguments=("plan",), cwd=tmp_path)


def test_an_unknown_key_in_an_otherwise_right_matrix_toml(tmp_path: Path) -> None:
    (tmp_path / "matrix.toml").write_text((ROOT / "matrix.toml").read_text().replace("cell_seconds =", "cel_seconds ="))

    _fails(2, "cel_seconds", "cell_seconds", arguments=("plan",), cwd=tmp_path)


def test_a_selection_that_matches_nothing() -> None:
    _fails(3, "lama", arguments=("plan", "--select", "lama*"))


def test_an_interpreter_that_is_none(tmp_path: Path) -> None:
    _fails(2, "no-python", arguments=("run", "--model", "qwen3_moe", "--python", tmp_path / "no-python"))


def test_ctrl_c_keeps_what_is_finished_and_leaves_no_child(tmp_path: Path) -> None:
    out = tmp_path / "out"
    command = [sys.executable, "-u", "-m", "harness", "matrix", "--profile", "smoke", "--jobs", "2", "--out", out]
    pipe = subprocess.PIPE
    with subprocess.Popen(
        [*command, "--fresh"],
        stdout=pipe,
        stderr=subprocess.STDOUT,
        text=True,
        stdin=subprocess.DEVNULL,
        env={**os.environ, **KEPT},
    ) as process:
        assert process.stdout is not None
        seen = []
        for line in process.stdout:
            seen.append(line)
            if "[1/4]" in line:
                break
        family: list[int] = []
        while len(family) < 3:  # the run, its watchdog, and a cell that is under way again
            family = [process.pid, *(child.pid for child in psutil.Process(process.pid).children(recursive=True))]
        os.kill(process.pid, signal.SIGINT)
        rest = process.stdout.read()
        code = process.wait(timeout=60)
    finished = list((out / "cells").rglob("*.json"))
    report = json.loads((out / "report.json").read_text())
    again = harness("report", out, "--out", tmp_path / "again")

    assert code == 130, "".join(seen) + rest
    assert not [
        pid for pid in family if psutil.pid_exists(pid) and psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    ]
    assert 1 <= len(finished) < 4
    assert len(report["rows"]) == 4
    assert "The same command without --fresh does the rest" in rest
    assert again.returncode == 1
    assert f"{4 - len(finished)} not run" in again.stdout
    assert json.loads((tmp_path / "again" / "report.json").read_text())["summary"] == report["summary"]


def test_a_second_run_reuses_what_the_first_has_kept_and_says_so(tmp_path: Path) -> None:
    select = ("--select", f"qwen3_moe/lora@{STANDARD}", "--out", tmp_path)
    first = harness("matrix", *select, "--fresh", env=KEPT)
    second = harness("matrix", *select, env=KEPT)
    plan = harness("plan", *select[:2], "--json", env=KEPT)
    report = json.loads((tmp_path / "report.json").read_text())

    assert first.returncode == second.returncode == 0, first.stdout + second.stdout
    assert "reused" not in first.stdout
    assert "1 of 1 result was reused from earlier runs, less than a minute old" in second.stdout
    assert list(report["reused"]) == [f"qwen3_moe/lora@{STANDARD}"]
    assert json.loads(plan.stdout)["cells"][0]["kept_age_seconds"] < 600


def test_help_teaches() -> None:
    done = harness("run", "--help")

    assert done.returncode == 0
    assert "Example" in done.stdout
    assert "Exit codes" in done.stdout
