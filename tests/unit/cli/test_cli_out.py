"""``--out`` that nothing can be written to is refused first: no index is asked, no environment made, no folder left."""

from __future__ import annotations

import importlib
import os
from pathlib import Path

import pytest
from typer.testing import CliRunner

from harness.cli import app
from harness.cli.setup import check_out
from harness.errors import ConfigurationError

COMMANDS = (("run", "--model", "qwen3_moe"), ("matrix",), ("faults",))


@pytest.mark.parametrize("command", COMMANDS)
def test_it_is_refused_before_anything_else_is_done(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path, command: tuple[str, ...]
) -> None:
    def loaded(*_: object) -> None:
        pytest.fail("the configuration was read")

    if command[0] != "faults":  # which looks its own options over first
        monkeypatch.setattr(importlib.import_module(f"harness.cli.{command[0]}"), "load_setup", loaded)
    monkeypatch.setattr(importlib.import_module("harness.cli.execute"), "check_versions_exist", loaded)
    (tmp_path / "file").write_text("")
    done = CliRunner().invoke(app, [*command, "--out", str(tmp_path / "file" / "below")])

    assert isinstance(done.exception, ConfigurationError), done.output
    assert done.exception.message == f"--out {tmp_path}/file/below: {tmp_path}/file is no directory."
    assert done.exception.exit_code == 2


@pytest.mark.parametrize("there", ["", "out", "out/cells"])
def test_the_nearest_folder_that_is_there_decides(monkeypatch: pytest.MonkeyPatch, tmp_path: Path, there: str) -> None:
    """Tests may run as root, who may write everywhere, so what the kernel says is set here."""
    place = tmp_path / there
    place.mkdir(parents=True, exist_ok=True)
    check_out(tmp_path / "out")
    real = os.access

    def access(path: os.PathLike[str], mode: int) -> bool:
        return Path(path) != place and real(path, mode)

    monkeypatch.setattr(os, "access", access)
    with pytest.raises(ConfigurationError, match="nothing can be written to") as caught:
        check_out(tmp_path / "out")

    assert str(place) in caught.value.message
    assert (tmp_path / "out").exists() == bool(there)
