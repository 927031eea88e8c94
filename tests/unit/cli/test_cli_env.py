"""``harness env``: what it says of kept results, and what it forgets."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import ConfigurationError


@pytest.fixture
def kept(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Path]:
    """A cache with two results, the first of which was not used for forty days, and an environment."""
    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(tmp_path))
    files = []
    for number, days in enumerate((40, 0)):
        path = tmp_path / "results" / f"{number}0" / f"{number}0.json"
        path.parent.mkdir(parents=True)
        when = time.time() - days * 86400
        for file in (path, path.with_suffix(".log")):
            file.write_bytes(b"x" * 500)
            os.utime(file, (when, when))
        files.append(path)
    (tmp_path / "environments" / "aa").mkdir(parents=True)
    return files


@pytest.mark.usefixtures("kept")
def test_the_list_says_how_much_room_results_take(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("MOE_LORA_HARNESS_RESULTS_SIZE", "1 MiB")
    done = CliRunner().invoke(app, ["env", "list"])

    assert done.exit_code == 0, done.output
    assert "2 results kept for later runs: 2.0 kB of 1.0 MB (MOE_LORA_HARNESS_RESULTS_SIZE)" in done.output


def test_results_are_forgotten_and_environments_stay(kept: list[Path], tmp_path: Path) -> None:
    first = CliRunner().invoke(app, ["env", "clean", "--results", "--older-than", "30"])
    assert "forgot 1 result, 1.0 kB freed" in first.output
    assert [path.exists() for path in kept] == [False, True]

    CliRunner().invoke(app, ["env", "clean", "--results"])
    assert not kept[1].exists()
    assert (tmp_path / "environments" / "aa").exists()
    assert CliRunner().invoke(app, ["env", "clean"]).exit_code == 0


@pytest.mark.parametrize("words", [("aa",), ("--locks",)])
def test_results_and_environments_are_not_named_together(kept: list[Path], words: tuple[str, ...]) -> None:
    done = CliRunner().invoke(app, ["env", "clean", "--results", *words])

    assert isinstance(done.exception, ConfigurationError)
    assert all(path.exists() for path in kept)
