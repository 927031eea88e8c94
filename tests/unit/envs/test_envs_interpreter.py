"""Describing an interpreter: the truth about this one, and clear errors for what is none."""

import importlib.metadata
import platform
import sys
from pathlib import Path

import pytest

from harness.envs.environment import unmanaged_environment
from harness.envs.interpreter import describe
from harness.errors import ConfigurationError


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
