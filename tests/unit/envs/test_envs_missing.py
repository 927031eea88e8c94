"""A version that no index has is told in our words: the package, its neighbours, what to type."""

from __future__ import annotations

from collections.abc import Collection, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from harness.envs.choice import IndexChooser
from harness.envs.indexes import IndexSettings
from harness.envs.interpreter import Interpreter
from harness.envs.layout import CacheLayout
from harness.envs.release_list import ReleaseList
from harness.envs.uv_command import Unresolvable
from harness.errors import ConfigurationError, VersionNotFoundError

PYTHON = Interpreter(
    python=Path("/usr/bin/python3"), version="3.11.2", implementation="CPython", abi="a", platform="p", libc="l",
    prefix=Path("/usr"), home=Path("/usr/bin/python3"), versions={},
)  # fmt: skip
OFFERED = {"peft": ("0.15.0", "0.19.1", "0.20.0", "0.21.2"), "trl": ("0.25.1",), "torch": ("2.12.0", "2.13.0")}


@dataclass
class Index:
    """Answers ``uv pip compile`` from what is offered; ``against`` are releases that do not go together."""

    against: Collection[str] = ()
    indexes: IndexSettings = field(
        default_factory=lambda: IndexSettings(source="none", environment={}, digest="d" * 64)
    )

    def __call__(self, arguments: Sequence[str], *, stdin: str | None = None) -> str:
        """Take the newest, or the lowest, of each package."""
        assert stdin is not None
        wanted = [Requirement(line) for line in stdin.splitlines()]
        pins = []
        for requirement in wanted:
            name = requirement.name
            fitting = sorted(requirement.specifier.filter(map(Version, OFFERED.get(name, ()))))
            if not fitting:
                words = f"Because there is no version of {requirement} and you require {requirement}, …"
                raise Unresolvable(words if name in OFFERED else f"Because {name} was not found in the registry, …")
            pins.append(f"{name}=={fitting[0 if 'lowest' in arguments else -1]}")
        if len(wanted) > 1 and self.against:
            raise Unresolvable(f"Because {' and '.join(self.against)} contradict each other, …")
        return "\n".join(pins) + "\n"


def chooser(root: Path, index: Index) -> IndexChooser:
    uv: Any = index
    return IndexChooser(releases=ReleaseList(uv=uv, layout=CacheLayout(root), interpreter=PYTHON))


@pytest.mark.parametrize(
    ("asked", "message", "remedy"),
    [
        ("peft==0.99.0", "peft==0.99.0", "Of peft, 0.21.2 is the newest: give --peft 0.21.2."),
        (
            "peft==0.19.5",
            "peft==0.19.5",
            (
                "Of peft, 0.19.1 is the nearest below and 0.20.0 the nearest above, 0.21.2 is the newest: "
                "give --peft 0.19.1."
            ),
        ),
        ("peft>=0.30", "peft>=0.30", "Of peft, 0.21.2 is the newest: give --peft 0.21.2."),
        ("torch==2.14.0", "torch==2.14.0", "Of torch, 2.13.0 is the newest: give --pin torch==2.13.0."),
        ("tlr==1.0", "tlr==1.0", "No index has a package 'tlr' for this Python"),
    ],
)
def test_a_version_that_does_not_exist_is_named_with_what_does(
    tmp_path: Path, asked: str, message: str, remedy: str
) -> None:
    with pytest.raises(VersionNotFoundError) as caught:
        chooser(tmp_path, Index()).choose([asked, "trl>=0.18"], pre=())

    assert caught.value.message == f"No configured package index offers {message}."
    assert remedy in str(caught.value.remedy)
    assert "uv says" not in str(caught.value)


def test_releases_that_exist_and_do_not_go_together_are_uvs_to_explain(tmp_path: Path) -> None:
    index = Index(against=("peft==0.19.1", "trl==0.25.1"))

    with pytest.raises(ConfigurationError, match="uv says: Because peft") as caught:
        chooser(tmp_path, index).choose(["peft==0.19.1", "trl>=0.18"], pre=())

    assert not isinstance(caught.value, VersionNotFoundError)
    assert "Give a range" in str(caught.value.remedy)
