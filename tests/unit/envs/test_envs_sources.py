"""Commits, trees and wheels: what they are is found once, by their contents; uv is made up."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest

from harness.envs.interpreter import Interpreter
from harness.envs.layout import CacheLayout
from harness.envs.lock import locked_versions, without_sources
from harness.envs.sources import build_source, tree_digest
from harness.errors import ConfigurationError
from harness.matrix.sources import SourceSelector

PYTHON = Interpreter(
    python=Path("/usr/bin/python3"), version="3.11.2", implementation="CPython", abi="a", platform="p", libc="l",
    prefix=Path("/usr"), home=Path("/usr/bin/python3"), versions={},
)  # fmt: skip
COMMIT = "3f96fa66b39c7684bae918245f06c48e6d36721c"


@dataclass
class Builder:
    """A uv that knows one commit, and builds any tree into the same wheel."""

    wheel: str = "peft-0.22.0.dev0-py3-none-any.whl"
    asked: list[list[str]] = field(default_factory=list)

    def log(self, line: str) -> None:
        """Say nothing."""

    def __call__(self, arguments: Sequence[str], *, stdin: str | None = None) -> str:
        """Answer or build."""
        self.asked.append([*arguments, *([stdin.strip()] if stdin else [])])
        if arguments[0] == "build":
            out = Path(arguments[arguments.index("--out-dir") + 1])
            out.mkdir()
            (out / self.wheel).write_bytes(b"wheel")
            Path(arguments[-1], "left-by-the-build").touch()
            return ""
        return (
            f'[[packages]]\nname = "peft"\nversion = "0.22.0.dev0"\nvcs = {{ type = "git", commit-id = "{COMMIT}" }}\n'
        )


def built(uv: Builder, root: Path, kind: str, text: str, package: str = "peft") -> tuple[str, Any]:
    made_up: Any = uv
    selector = SourceSelector(kind=kind, text=text)  # type: ignore[arg-type]  # a literal
    return build_source(made_up, CacheLayout(root), PYTHON, package, selector)


@pytest.fixture
def tree(tmp_path: Path) -> Path:
    root = tmp_path / "tree"
    (root / "src" / "peft").mkdir(parents=True)
    (root / "pyproject.toml").write_text("[project]\n", encoding="utf-8")
    (root / "src" / "peft" / "__init__.py").write_text("x = 1\n", encoding="utf-8")
    return root


@pytest.mark.parametrize(
    ("text", "location"),
    [
        ("git+https://h/o/peft@main", f"git+https://h/o/peft@{COMMIT}"),
        ("git+https://h/o/peft", f"git+https://h/o/peft@{COMMIT}"),
        ("git+https://h/o/peft@feature/x", f"git+https://h/o/peft@{COMMIT}"),
        ("git+ssh://git@h/o/peft.git@v1", f"git+ssh://git@h/o/peft.git@{COMMIT}"),
        ("git+https://h/o/mono@main#subdirectory=peft", f"git+https://h/o/mono@{COMMIT}#subdirectory=peft"),
        ("git+file:///srv/peft@main", f"git+file:///srv/peft@{COMMIT}"),
    ],
)
def test_a_reference_is_the_commit_that_it_means_now(tmp_path: Path, text: str, location: str) -> None:
    uv = Builder()
    version, source = built(uv, tmp_path, "git", text)

    assert version == "0.22.0.dev0"
    assert (source.kind, source.digest, source.location) == ("git", COMMIT, location)
    assert uv.asked[0][-1] == f"peft @ {text}"
    assert source.mark == ".git.3f96fa66"
    assert source.reusable


def test_a_tree_is_built_once_and_left_as_it_was(tree: Path, tmp_path: Path) -> None:
    uv = Builder()
    before = sorted(tree.rglob("*"))
    version, source = built(uv, tmp_path / "cache", "path", str(tree))

    assert version == "0.22.0.dev0"
    assert source.digest == tree_digest(tree)
    assert source.location.endswith(uv.wheel)
    assert not source.reusable
    assert sorted(tree.rglob("*")) == before
    assert built(uv, tmp_path / "cache", "path", f"file://{tree}") == (version, source)
    assert len(uv.asked) == 1

    (tree / "src" / "peft" / "__init__.py").write_text("x = 2\n", encoding="utf-8")
    assert built(uv, tmp_path / "cache", "path", str(tree))[1].digest != source.digest
    assert len(uv.asked) == 2


def test_a_digest_is_of_names_and_contents_of_what_is_built_from(tree: Path) -> None:
    digests = [tree_digest(tree)]
    for ignored in (".git/HEAD", "build/lib/x.py", "src/peft.egg-info/PKG-INFO", "src/peft/__pycache__/x.pyc"):
        (tree / ignored).parent.mkdir(parents=True, exist_ok=True)
        (tree / ignored).write_text("", encoding="utf-8")
    assert tree_digest(tree) == digests[0]

    (tree / "empty").touch()
    digests.append(tree_digest(tree))
    (tree / "empty").rename(tree / "other")
    digests.append(tree_digest(tree))
    (tree / "link").symlink_to("other")
    digests.append(tree_digest(tree))
    assert len(set(digests)) == 4


def test_a_wheel_is_its_bytes(tmp_path: Path) -> None:
    wheel = tmp_path / "peft-0.22.0-py3-none-any.whl"
    # An archive of nothing is its end record: the signature PK 05 06 and 18 zero bytes (APPNOTE.TXT, 4.3.16).
    wheel.write_bytes(b"PK\5\6" + bytes(18))
    version, source = built(Builder(), tmp_path, "wheel", str(wheel))

    assert version == "0.22.0"
    # the SHA-256 of those 22 bytes
    assert source.digest == "8739c76e681f900923b900c9df0ef75cf421d39cabb54650c4b9ad19b6a76d85"
    assert source.mark == ".wheel.8739c76e"


@pytest.mark.parametrize("content", [b"", b"abc"], ids=["nothing", "no archive"])
def test_a_file_that_is_called_a_wheel_and_is_none_is_refused(tmp_path: Path, content: bytes) -> None:
    wheel = tmp_path / "peft-0.22.0-py3-none-any.whl"
    wheel.write_bytes(content)

    with pytest.raises(ConfigurationError, match="it is no wheel, which is a zip archive"):
        built(Builder(), tmp_path, "wheel", str(wheel))


@pytest.mark.parametrize(
    ("kind", "text", "words"),
    [
        ("wheel", "absent/peft-1-py3-none-any.whl", "there is no such wheel"),
        ("path", ".", "no source tree"),
        ("path", "./absent", "there is no such folder"),
        ("path", "/" + "x" * 5000, "there is no such folder"),
        ("path", "file:///a%00b", "there is no such folder"),
        ("wheel", "/" + "x" * 5000 + ".whl", "there is no such wheel"),
    ],
)
def test_what_is_not_there_is_refused(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, kind: str, text: str, words: str
) -> None:
    monkeypatch.chdir(tmp_path)
    with pytest.raises(ConfigurationError, match=words):
        built(Builder(), tmp_path, kind, text)


def test_another_package_is_refused(tree: Path, tmp_path: Path) -> None:
    with pytest.raises(ConfigurationError, match=r"is a wheel of peft\."):
        built(Builder(), tmp_path / "cache", "path", str(tree), package="trl")
    (tmp_path / "odd.whl").touch()
    with pytest.raises(ConfigurationError, match="is not the name of a wheel"):
        built(Builder(), tmp_path, "wheel", str(tmp_path / "odd.whl"))


def test_a_lock_names_no_place() -> None:
    text = (
        "numpy==2.4.6 \\\n    --hash=sha256:aa\n"
        f"peft @ git+https://h/o/peft@{COMMIT}\n"
        "transformers @ file:///cache/transformers-5.25.0-py3-none-any.whl \\\n    --hash=sha256:bb \\\n"
        "    --hash=sha256:cc\n"
        "trl==1.16.0 \\\n    --hash=sha256:dd\n"
    )

    assert without_sources(text) == "numpy==2.4.6 \\\n    --hash=sha256:aa\ntrl==1.16.0 \\\n    --hash=sha256:dd\n"
    assert locked_versions(text) == {"numpy": "2.4.6", "trl": "1.16.0"}
