"""Describing an interpreter: the truth about this one, and clear errors for what is none."""

import importlib.metadata
import os
import platform
import sys
from dataclasses import replace
from pathlib import Path

import pytest

from harness.envs import interpreter
from harness.envs.candidates import python_candidates
from harness.envs.environment import unmanaged_environment
from harness.envs.interpreter import describe, find_interpreter
from harness.envs.uv_command import Uv, find_uv
from harness.errors import ConfigurationError, EnvironmentFailedError


def test_this_interpreter_is_described_as_it_is() -> None:
    told = describe(Path(sys.executable))

    assert told.version == platform.python_version()
    assert told.prefix == Path(sys.prefix)
    assert told.home.exists()
    assert not told.home.is_symlink()
    assert told.versions == {}
    assert told.version in told.tag


def test_an_unmanaged_interpreter_tells_its_versions_and_has_no_lock() -> None:
    found = unmanaged_environment(Path(sys.executable))

    assert found.lock_sha256 is None
    assert found.reused
    assert found.versions["packaging"] == importlib.metadata.version("packaging")
    assert found.python_version == platform.python_version()


def script(path: Path, text: str) -> Path:
    path.write_text(text, encoding="utf-8")
    path.chmod(0o755)
    return path


def test_what_is_no_python_is_a_configuration_error(tmp_path: Path) -> None:
    cases = {
        tmp_path / "absent": "There is no",
        tmp_path: "is a folder",
        script(tmp_path / "fails", "#!/bin/sh\necho no such thing >&2\nexit 3\n"): "no such thing",
        script(tmp_path / "silent", "#!/bin/sh\nexit 0\n"): "is no Python interpreter",
        script(tmp_path / "talks", "#!/bin/sh\necho '[]'\n"): "is no Python interpreter",
    }
    plain = tmp_path / "plain.txt"
    plain.write_text("not executable", encoding="utf-8")
    cases[plain] = "is no Python interpreter"

    for path, words in cases.items():
        with pytest.raises(ConfigurationError, match=words):
            unmanaged_environment(path)


def test_the_folder_of_an_environment_gets_a_suggestion(tmp_path: Path) -> None:
    (tmp_path / "bin").mkdir()
    (tmp_path / "bin" / "python").symlink_to(sys.executable)

    with pytest.raises(ConfigurationError) as caught:
        unmanaged_environment(tmp_path)

    assert str(tmp_path / "bin" / "python") in str(caught.value.remedy)


RUNNING = f"{sys.version_info.major}.{sys.version_info.minor}"
OTHER = "3.9" if RUNNING != "3.9" else "3.10"
"""A version that the interpreter which runs this has not."""

SHIM = "#!/bin/sh\necho 'pyenv: no such command' >&2\nexit 127\n"


def pretended(path: Path, version: str) -> Path:
    """An interpreter that says it is another version."""
    path.parent.mkdir(parents=True, exist_ok=True)
    said = f'{sys.executable} "$@" | sed \'s/"version": "{platform.python_version()}"/"version": "{version}"/\''
    return script(path, f"#!/bin/sh\n{said}\n")


@pytest.fixture
def stubborn(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Uv:
    """A machine whose first Python of that version is a shim that does not run, and the uv that gives up there."""
    shims = tmp_path / "pyenv" / "shims"
    shims.mkdir(parents=True)
    script(shims / f"python{OTHER}", SHIM)
    monkeypatch.delenv("PYENV_ROOT", raising=False)
    monkeypatch.setenv("PATH", f"{shims}:{tmp_path / 'bin'}:{os.environ['PATH']}")
    monkeypatch.setattr(interpreter, "python_candidates", lambda version: candidates_below(tmp_path, version))
    return find_uv(tmp_path / "uv")


def candidates_below(folder: Path, version: str) -> list[Path]:
    """The candidates of this test: those of the machine that runs it say nothing."""
    return [path for path in python_candidates(version) if path.is_relative_to(folder)]


def test_a_shim_that_does_not_run_is_passed_over(stubborn: Uv, tmp_path: Path) -> None:
    wanted = pretended(tmp_path / "bin" / f"python{OTHER}", f"{OTHER}.7")
    said: list[str] = []
    found = find_interpreter(replace(stubborn, log=said.append), OTHER)

    assert found.version == f"{OTHER}.7"
    assert f"{wanted}; " in said[-1]
    assert "pyenv: no such command" in said[-1]


def test_what_a_shim_stands_for_is_found(stubborn: Uv, tmp_path: Path) -> None:
    for patch in ("9", "10", "2"):
        pretended(tmp_path / "pyenv" / "versions" / f"{OTHER}.{patch}" / "bin" / f"python{OTHER}", f"{OTHER}.{patch}")
    (tmp_path / "pyenv" / "versions" / f"{OTHER}-mine").mkdir()

    assert find_interpreter(stubborn, OTHER).version == f"{OTHER}.10", "the newest, by number"


def test_where_none_runs_each_is_named_with_its_words(stubborn: Uv, tmp_path: Path) -> None:
    wrong = tmp_path / "bin" / f"python{OTHER}"
    pretended(wrong, f"{OTHER}1.0")
    with pytest.raises(EnvironmentFailedError) as caught:
        find_interpreter(stubborn, OTHER)

    assert f"{tmp_path}/pyenv/shims/python{OTHER} does not run as a Python interpreter: pyenv: no such command" in (
        caught.value.message
    )
    assert f"{wrong} is Python {OTHER}1.0." in caught.value.message
    assert caught.value.exit_code == 4
    assert f"Install Python {OTHER}" in str(caught.value.remedy)


def test_a_version_that_nobody_has_is_said_in_uvs_words(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(interpreter, "python_candidates", lambda _version: [])
    with pytest.raises(EnvironmentFailedError, match=r"Python 3\.99 was asked for"):
        find_interpreter(find_uv(tmp_path / "uv"), "3.99")
