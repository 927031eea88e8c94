"""What a stack's own environment knows: asked once for each environment, and again where the answer is not whole."""

from __future__ import annotations

import json
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.cli import known_families
from harness.execution.bundle import Bundle
from harness.matrix.cell import Stack

STACK = Stack(transformers="5.24.0", peft="0.21.2", trl="1.16.0")


class Environments:
    """Environments that answer by what they hold, and count how often they were asked."""

    def __init__(self, monkeypatch: pytest.MonkeyPatch, root: Path) -> None:
        self.identity: str | None = "a"
        self.asked: list[str | None] = []
        monkeypatch.setattr(known_families, "cache_dir", lambda: root)
        monkeypatch.setattr(known_families, "ensure_environment", self._environment)
        monkeypatch.setattr(known_families, "_run", self._answer)
        self._bundle = Bundle(root=root, sha256="code")

    def _environment(self, _stack: Stack) -> SimpleNamespace:
        return SimpleNamespace(python=Path("python"), identity=self.identity, lock_sha256="lock", versions={})

    def _answer(self, command: list[str], _stack: Stack) -> None:
        self.asked.append(self.identity)
        Path(command[-1]).write_text(json.dumps({"mixtral": None, f"only_{self.identity}".lower(): "cannot be built"}))

    def families(self) -> set[str]:
        """Ask."""
        return set(known_families.ask(STACK, self._bundle, say=lambda _line: None))


@pytest.fixture
def environments(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Environments:
    return Environments(monkeypatch, tmp_path)


def test_an_environment_is_asked_once(environments: Environments) -> None:
    assert environments.families() == environments.families() == {"mixtral", "only_a"}
    assert environments.asked == ["a"]


def test_one_that_holds_other_sources_is_asked_too_whatever_its_lock_says(environments: Environments) -> None:
    environments.families()
    environments.identity = "b"

    assert environments.families() == {"mixtral", "only_b"}


@pytest.mark.parametrize("text", ['{"mixtral": nul', "{}", '["mixtral"]', '{"foo bar": null}', '{"mixtral": 3}'])
def test_an_answer_that_is_not_whole_is_asked_for_again(environments: Environments, tmp_path: Path, text: str) -> None:
    environments.families()
    (file,) = (tmp_path / known_families.FOLDER).iterdir()
    file.write_text(text)

    assert environments.families() == {"mixtral", "only_a"}
    assert environments.asked == ["a", "a"]


def test_an_interpreter_of_the_user_s_is_asked_each_time(environments: Environments) -> None:
    environments.identity = None

    assert environments.families() == environments.families() == {"mixtral", "only_none"}
    assert environments.asked == [None, None]
