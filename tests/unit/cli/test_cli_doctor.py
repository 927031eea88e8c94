"""``harness doctor`` ends with a verdict, and its exit code says the same."""

from __future__ import annotations

import importlib
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.errors import EnvironmentFailedError

DOCTOR: Any = importlib.import_module("harness.cli.doctor")  # the package calls the function of that name the same


@pytest.fixture(autouse=True)
def machine(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Path:
    """A machine that lacks nothing, whose cache is not there yet."""
    uv = SimpleNamespace(version="0.13.8", indexes=SimpleNamespace(decisions=("PyPI",)))
    monkeypatch.setattr(DOCTOR, "cache_dir", lambda: tmp_path / "cache")
    monkeypatch.setattr(DOCTOR.shutil, "disk_usage", lambda _path: SimpleNamespace(free=DOCTOR.ROOM_WANTED))
    monkeypatch.setattr(DOCTOR, "find_uv", lambda *_args: uv)
    monkeypatch.setattr(DOCTOR, "newest_release", lambda _package: "0.21.2")
    return tmp_path


def asked() -> tuple[int, str]:
    done = CliRunner().invoke(app, ["doctor"])
    return done.exit_code, done.stdout.splitlines()[-1]


def failing(*_args: object) -> None:
    raise EnvironmentFailedError("uv failed (exit code 2): Connection\nrefused.", remedy="Name a mirror.")


def test_a_machine_that_lacks_nothing_is_ready() -> None:
    assert asked() == (0, "ready")


@pytest.mark.parametrize(("name", "what"), [("find_uv", "uv"), ("newest_release", "indexes")])
def test_what_is_missing_is_the_verdict(monkeypatch: pytest.MonkeyPatch, name: str, what: str) -> None:
    monkeypatch.setattr(DOCTOR, name, failing)

    assert asked() == (4, f"not ready: {what}: uv failed (exit code 2): Connection refused (Name a mirror)")


def test_too_little_room_and_no_index_are_both_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(DOCTOR.shutil, "disk_usage", lambda _path: SimpleNamespace(free=DOCTOR.ROOM_WANTED - 1))
    monkeypatch.setattr(DOCTOR, "newest_release", failing)
    code, verdict = asked()

    assert code == 4
    assert verdict.startswith(
        "not ready: less than 8.0 GB free, so environments may not fit: free some space; indexes:"
    )


def test_a_cache_that_cannot_be_made_is_told(machine: Path) -> None:
    (machine / "cache").write_text("")
    code, verdict = asked()

    assert code == 4
    assert "cannot be made (File exists): name another in MOE_LORA_HARNESS_CACHE" in verdict
