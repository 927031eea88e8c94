"""Which configuration files are used."""

from __future__ import annotations

from pathlib import Path

import pytest

from harness.errors import ConfigurationError
from harness.matrix import locate
from harness.matrix.locate import find_config, find_expectations

ROOT = Path(__file__).resolve().parents[3]


def test_a_given_file_is_used_and_must_exist(tmp_path: Path) -> None:
    mine = tmp_path / "mine.toml"
    with pytest.raises(ConfigurationError, match=r"mine\.toml"):
        find_config(mine)
    mine.touch()

    assert find_config(mine) == mine


def test_the_working_directory_comes_before_what_was_shipped(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    assert find_config() == ROOT / "matrix.toml"
    (tmp_path / "matrix.toml").touch()

    assert find_config() == tmp_path / "matrix.toml"


def test_an_installed_package_uses_its_own_defaults(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package = tmp_path / "site-packages" / "harness" / "matrix"
    (package / "defaults").mkdir(parents=True)
    monkeypatch.setattr(locate, "__file__", str(package / "locate.py"))
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=r"no matrix\.toml"):
        find_config()
    (package / "defaults" / "matrix.toml").touch()

    assert find_config() == package / "defaults" / "matrix.toml"


def test_expectations_lie_beside_the_matrix_they_are_about(tmp_path: Path) -> None:
    config = tmp_path / "matrix.toml"
    assert find_expectations(None, config) is None
    (tmp_path / "expectations.toml").touch()
    assert find_expectations(None, config) == tmp_path / "expectations.toml"

    with pytest.raises(ConfigurationError, match=r"other\.toml"):
        find_expectations(tmp_path / "other.toml", config)


def test_the_wheel_carries_both_files_where_they_are_looked_for() -> None:
    text = (ROOT / "pyproject.toml").read_text(encoding="utf-8")

    for name in ("matrix.toml", "expectations.toml"):
        assert f'"{name}" = "harness/matrix/defaults/{name}"' in text
