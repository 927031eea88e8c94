"""The committed locks: exact versions and hashes, nothing of the machine or the index that made them, and no torch."""

from __future__ import annotations

import re
import tomllib
from pathlib import Path

import pytest
from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

ROOT = Path(__file__).resolve().parents[2]
LOCKS = sorted((ROOT / "requirements").glob("*.txt"))
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text("utf-8"))
NAMES = {"bench", "browser", "host", "lint", "mutants", "ray", "tests"}
HASH = re.compile(r"--hash=sha256:[0-9a-f]{64}")


def entries(text: str) -> dict[Requirement, list[str]]:
    """Return a lock's entries: the requirement and the options that follow it."""
    found: dict[Requirement, list[str]] = {}
    for line in text.replace("\\\n", " ").splitlines():
        if line.strip():
            requirement, *options = re.split(r"\s+(?=--)", line.strip())
            found[Requirement(requirement)] = options
    return found


def pins(name: str) -> dict[str, list[Requirement]]:
    """Return canonical name to the entries for it: a universal lock may have one for each platform or Python."""
    found: dict[str, list[Requirement]] = {}
    for requirement in entries((ROOT / "requirements" / f"{name}.txt").read_text("utf-8")):
        found.setdefault(canonicalize_name(requirement.name), []).append(requirement)
    return found


def direct(texts: list[str]) -> list[Requirement]:
    return [Requirement(text) for text in texts]


def test_there_is_a_lock_for_each_way_to_install() -> None:
    assert {path.stem for path in LOCKS} == NAMES


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_every_entry_is_an_exact_version_with_hashes(path: Path) -> None:
    found = entries(path.read_text("utf-8"))
    assert len(found) > 10
    for requirement, options in found.items():
        assert [item.operator for item in requirement.specifier] == ["=="], requirement
        assert requirement.url is None, requirement
        assert options, requirement
        assert all(HASH.fullmatch(option) for option in options), requirement


@pytest.mark.parametrize("path", LOCKS, ids=lambda path: path.stem)
def test_a_lock_names_no_place(path: Path) -> None:
    text = path.read_text("utf-8")
    assert "://" not in text
    assert not re.search(r"(^|\s)[./~]", text, flags=re.MULTILINE)
    assert not re.search(r"^\s*(-[a-z]|--(?!hash))", text, flags=re.MULTILINE)
    assert not [requirement for requirement in entries(text) if requirement.name == "torch"]


def test_the_host_lock_holds_every_direct_dependency() -> None:
    host = pins("host")
    for wanted in direct(PROJECT["project"]["dependencies"] + PROJECT["dependency-groups"]["build"]):
        locked = host[canonicalize_name(wanted.name)]
        assert all(wanted.specifier.contains(Version(next(iter(item.specifier)).version)) for item in locked), wanted


@pytest.mark.parametrize("group", sorted(NAMES - {"host"}))
def test_a_group_holds_its_own_and_agrees_with_the_host(group: str) -> None:
    host, found = pins("host"), pins(group)
    for wanted in direct((PROJECT["dependency-groups"] | PROJECT["project"]["optional-dependencies"])[group]):
        assert canonicalize_name(wanted.name) in found, wanted
    assert host.keys() <= found.keys()
    assert {name: sorted(map(str, found[name])) for name in host} == {
        name: sorted(map(str, items)) for name, items in host.items()
    }
