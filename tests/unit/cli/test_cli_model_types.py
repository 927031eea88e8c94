"""A name of a family that nobody knows is a mistake of the command line: nothing is run, and nothing is kept."""

from __future__ import annotations

import importlib
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import pytest
from typer.testing import CliRunner

from harness.cli import app, model_types
from harness.cli.model_types import refuse_unknown_model
from harness.envs.uv_command import Unresolvable
from harness.errors import EnvironmentFailedError, UnknownNameError
from harness.matrix.catalogue import read_catalogue
from harness.matrix.cell import Stack

STACK = Stack(transformers="5.24.0", peft="0.21.2", trl="1.16.0")
CATALOGUE = read_catalogue()
KNOWN = ["focalnet", "llama", "mixtral", "qwen3_moe"]


@pytest.fixture
def asked(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> list[Sequence[str]]:
    """What an environment is asked, in a cache of its own; it knows ``KNOWN``."""
    seen: list[Sequence[str]] = []

    def run(command: Sequence[str], **_options: Any) -> SimpleNamespace:
        seen.append(command)
        return SimpleNamespace(returncode=0, stdout=f"a library's banner\n{json.dumps(KNOWN)}\n", stderr="")

    environment = SimpleNamespace(python=Path(sys.executable), identity="a1b2", versions={})
    monkeypatch.setattr(model_types, "cache_dir", lambda: tmp_path)
    monkeypatch.setattr(model_types, "ensure_environment", lambda *_args, **_options: environment)
    monkeypatch.setattr(model_types, "subprocess", SimpleNamespace(run=run, TimeoutExpired=TimeoutError))
    return seen


@pytest.mark.parametrize(
    ("name", "meant"), [("qwen3_mo", "qwen3_moe"), ("mixtrel", "mixtral"), ("glm4moe", "glm4_moe"), ("foo", None)]
)
def test_a_name_that_nobody_knows_is_refused_with_what_was_meant(
    asked: list[Sequence[str]], name: str, meant: str | None
) -> None:
    with pytest.raises(UnknownNameError, match=r"transformers 5\.24\.0 has no such model_type") as caught:
        refuse_unknown_model(CATALOGUE, name, STACK)

    assert ("Did you mean" in caught.value.message) == (meant is not None)
    assert meant is None or f"Did you mean {meant!r}?" in caught.value.message
    assert "--transformers" in str(caught.value.remedy)
    assert caught.value.exit_code == 2
    assert len(asked) == 1


def test_what_transformers_knows_is_asked_once_for_each_environment(asked: list[Sequence[str]]) -> None:
    refuse_unknown_model(CATALOGUE, "mixtral", STACK)
    refuse_unknown_model(CATALOGUE, "llama", STACK)

    assert len(asked) == 1


def test_a_family_with_a_file_asks_nobody(asked: list[Sequence[str]]) -> None:
    refuse_unknown_model(CATALOGUE, "deepseek_v3", STACK)

    assert asked == []


@pytest.mark.parametrize("text", ["", "[", "[]", "[1]", "{}"])
def test_an_answer_that_is_not_whole_is_asked_for_again(asked: list[Sequence[str]], tmp_path: Path, text: str) -> None:
    file = tmp_path / model_types.FOLDER / "a1b2.json"
    file.parent.mkdir()
    file.write_text(text)

    refuse_unknown_model(CATALOGUE, "mixtral", STACK)

    assert len(asked) == 1


@pytest.mark.parametrize("error", [EnvironmentFailedError("no network"), Unresolvable("they contradict each other")])
def test_where_there_is_no_environment_the_cell_says_why(monkeypatch: pytest.MonkeyPatch, error: Exception) -> None:
    def failing(*_args: object, **_options: object) -> None:
        raise error

    monkeypatch.setattr(model_types, "ensure_environment", failing)

    refuse_unknown_model(CATALOGUE, "qwen3_mo", STACK)
    assert model_types.model_types(STACK) is None


def test_a_misspelt_model_runs_nothing_and_keeps_nothing(
    asked: list[Sequence[str]], monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    def execute(*_args: object, **_options: object) -> None:
        pytest.fail("a cell was run")

    monkeypatch.setattr(importlib.import_module("harness.cli.run"), "execute", execute)
    words = ("run", "--model", "qwen3_mo", "--transformers", "5.5.0", "--out", str(tmp_path / "out"))

    done = CliRunner().invoke(app, words)

    assert isinstance(done.exception, UnknownNameError)
    assert "Did you mean 'qwen3_moe'?" in done.exception.message
    assert not (tmp_path / "out").exists()
    assert len(asked) == 1
