"""Which releases there are, asked of a uv that is made up: an index of a few releases, and a clock."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import dataclass, field
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from packaging.requirements import Requirement
from packaging.version import Version

from harness.envs.indexes import IndexSettings
from harness.envs.interpreter import Interpreter
from harness.envs.layout import CacheLayout
from harness.envs.release_list import FRESH_FOR, WHOLE_FOR, ReleaseList
from harness.envs.uv_command import Said, Unresolvable
from harness.envs.versions import yanked
from harness.errors import EnvironmentFailedError, VersionNotFoundError

START = datetime(2026, 11, 1, 12, tzinfo=UTC)
PYTHON = Interpreter(
    python=Path("/usr/bin/python3"), version="3.11.2", implementation="CPython", abi="a", platform="p", libc="l",
    prefix=Path("/usr"), home=Path("/usr/bin/python3"), versions={},
)  # fmt: skip


@dataclass
class MadeUpIndex:
    """Answers ``uv pip compile`` as uv does, from releases by version with the day of their upload."""

    releases: dict[str, str | None]
    down: bool = False
    asked: list[str] = field(default_factory=list)
    indexes: IndexSettings = field(
        default_factory=lambda: IndexSettings(source="none", environment={}, digest="d" * 64)
    )
    now: datetime = START

    def log(self, line: str) -> None:
        """Say nothing."""

    def __call__(self, arguments: Sequence[str], *, stdin: str | None = None) -> str:
        """Answer a question about one package."""
        assert arguments[:3] == ["pip", "compile", "-"]
        assert stdin is not None
        self.asked.append(stdin.strip())
        if self.down:
            raise EnvironmentFailedError("uv failed (exit code 2): Connection refused\nhttp://secret.test/simple")
        requirement = Requirement(stdin.strip())
        pre = arguments[arguments.index("--prerelease") + 1] == "allow"
        fitting = sorted(requirement.specifier.filter(map(Version, self.releases), prereleases=pre))
        fitting = [version for version in fitting if pre or not version.is_prerelease]
        if not fitting:
            raise Unresolvable(f"there are no versions of {requirement.name}")
        version = str(fitting[0 if "--resolution" in arguments else -1])
        day = self.releases[version]
        time = f", upload-time = {day}T10:00:00Z" if day else ""
        files = f'sdist = {{ url = "u"{time} }}\nwheels = [{{ url = "u"{time.replace("10:", "09:")} }}]'
        return f'[[packages]]\nname = "{requirement.name}"\nversion = "{version}"\n{files}\n'


@pytest.fixture
def index() -> MadeUpIndex:
    days = {
        "0.21.2": "2026-10-01",
        "0.20.0": None,
        "0.22.0rc1": "2026-10-20",
        "0.15.0": "2025-03-19",
        "0.14.0": "2025-01-01",
    }
    return MadeUpIndex(releases=dict(days))


def listed(index: MadeUpIndex, root: Path) -> ReleaseList:
    uv: Any = index
    return ReleaseList(uv=uv, layout=CacheLayout(root), interpreter=PYTHON, now=lambda: index.now)


def test_every_supported_release_is_found_with_its_upload(index: MadeUpIndex, tmp_path: Path) -> None:
    offer = listed(index, tmp_path).offer("peft")

    assert [release.version for release in offer.releases] == ["0.22.0rc1", "0.21.2", "0.20.0", "0.15.0"]
    # of a release's files the one that came first
    assert offer.releases[1].uploaded == datetime(2026, 10, 1, 9, tzinfo=UTC)
    assert offer.releases[2].uploaded is None
    assert (offer.asked, offer.stale, offer.new) == (START, None, ())
    assert len(index.asked) == 5


def test_what_was_said_is_remembered_for_a_while(index: MadeUpIndex, tmp_path: Path) -> None:
    first = listed(index, tmp_path).offer("peft")
    index.now, index.down = START + FRESH_FOR - timedelta(seconds=1), True
    again = listed(index, tmp_path).offer("peft")

    assert again == first
    assert len(index.asked) == 5


def test_a_new_release_takes_two_questions_and_is_said_to_be_new(index: MadeUpIndex, tmp_path: Path) -> None:
    listed(index, tmp_path).offer("peft")
    index.now += timedelta(days=1)
    index.releases["0.21.3"] = "2026-11-02"
    offer = listed(index, tmp_path).offer("peft")

    assert [release.version for release in offer.releases] == ["0.22.0rc1", "0.21.3", "0.21.2", "0.20.0", "0.15.0"]
    assert offer.new == ("0.21.3",)
    assert len(index.asked) == 5 + 2
    index.now += timedelta(days=1)
    assert listed(index, tmp_path).offer("peft").new == ()


def test_after_a_week_all_are_asked_for_anew(index: MadeUpIndex, tmp_path: Path) -> None:
    listed(index, tmp_path).offer("peft")
    del index.releases["0.20.0"]  # yanked: uv does not offer it any more
    index.now += timedelta(days=1)
    assert "0.20.0" in [it.version for it in listed(index, tmp_path).offer("peft").releases]

    index.now += WHOLE_FOR
    assert "0.20.0" not in [it.version for it in listed(index, tmp_path).offer("peft").releases]


def test_out_of_reach_the_last_answer_is_used_and_its_age_said(index: MadeUpIndex, tmp_path: Path) -> None:
    first = listed(index, tmp_path).offer("peft")
    index.now += timedelta(days=3)
    index.down = True
    offer = listed(index, tmp_path).offer("peft")

    assert offer.releases == first.releases
    assert offer.stale is not None
    assert offer.stale.endswith("Connection refused); taken from what they said 3 days ago")
    assert "secret" not in offer.stale


def test_out_of_reach_with_nothing_remembered_is_an_error(index: MadeUpIndex, tmp_path: Path) -> None:
    index.down = True
    for ask in (lambda it: it.offer("peft"), lambda it: it.newest("peft"), lambda it: it.oldest("peft")):
        with pytest.raises(EnvironmentFailedError, match="Connection refused"):
            ask(listed(index, tmp_path))


def test_the_ends_of_the_list_take_one_question_each(index: MadeUpIndex, tmp_path: Path) -> None:
    assert listed(index, tmp_path).newest("peft") == ("0.21.2", None)
    assert listed(index, tmp_path).newest("peft", pre=True) == ("0.22.0rc1", None)
    assert listed(index, tmp_path).oldest("peft") == ("0.15.0", None)
    assert len(index.asked) == 3

    index.now += timedelta(hours=2)
    index.down = True
    version, note = listed(index, tmp_path).newest("peft")
    assert version == "0.21.2"
    assert note is not None
    assert note.endswith("taken from what they said 2 hours ago")
    # three are known by now, and that is not all of them
    index.down = False
    assert len(listed(index, tmp_path).offer("peft").releases) == 4


def test_a_package_that_nobody_offers_is_an_error(tmp_path: Path) -> None:
    for ask in (lambda it: it.offer("peft"), lambda it: it.newest("peft")):
        with pytest.raises(VersionNotFoundError, match="offers a release of peft"):
            ask(listed(MadeUpIndex(releases={"0.14.0": None}), tmp_path))


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"asked": "now"}', '{"asked": "2026-11-01", "whole": null}'])
def test_a_damaged_memory_is_asked_for_again(index: MadeUpIndex, tmp_path: Path, damage: str) -> None:
    listed(index, tmp_path).offer("peft")
    (file,) = (tmp_path / "releases").rglob("peft.json")
    file.write_text(damage, encoding="utf-8")

    assert len(listed(index, tmp_path).offer("peft").releases) == 4
    assert len(index.asked) == 10


def test_no_address_is_remembered(index: MadeUpIndex, tmp_path: Path) -> None:
    listed(index, tmp_path).offer("peft")

    for file in (tmp_path / "releases").rglob("*"):
        assert not re.search(r"://|url", file.read_text(encoding="utf-8") if file.is_file() else "")


def test_upload_times_of_pins_are_asked_for(index: MadeUpIndex, tmp_path: Path) -> None:
    found = listed(index, tmp_path).uploaded({"peft": "0.21.2"})

    assert found == {"peft": datetime(2026, 10, 1, 9, tzinfo=UTC)}
    assert listed(index, tmp_path).uploaded({"peft": "0.20.0"}) == {"peft": None}


@dataclass
class Warner:
    """A uv that succeeds with warnings."""

    warnings: tuple[str, ...]

    def run(self, _arguments: Sequence[str], *, stdin: str) -> Said:
        """Succeed."""
        return Said(text=stdin, warnings=self.warnings)


def test_what_is_yanked_is_said_with_its_reason() -> None:
    words = (
        '`transformers==4.57.0` is yanked (reason: "Error in the setup causing installation issues")',
        "`trl==1.0.0` is yanked",
        "`peft-0.21.0-py3-none-any.whl` is missing an upload date",
    )
    uv: Any = Warner(words)

    assert yanked(uv, ["transformers==4.57", "trl==1.0.0", "peft==0.21.0"], PYTHON) == {
        "transformers==4.57": "transformers 4.57 is yanked (Error in the setup causing installation issues); "
        "it is installed because it is pinned exactly.",
        "trl==1.0.0": "trl 1.0.0 is yanked; it is installed because it is pinned exactly.",
        "peft==0.21.0": None,
    }
