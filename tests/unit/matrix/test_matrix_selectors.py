"""What a selector is, and which releases it means: hand-made lists of releases."""

from __future__ import annotations

from datetime import UTC, datetime, timedelta

import pytest
from hypothesis import given
from hypothesis import strategies as st
from packaging.version import Version

from harness.contract.supported import OLDEST
from harness.errors import ConfigurationError
from harness.matrix.releases import Release, age, newest_first, utc
from harness.matrix.selectors import Exact, Latest, LatestPatches, Oldest, Range, parse_selector, select
from harness.matrix.sources import SourceSelector

# In no order, as an index may give them.
RELEASES = tuple(
    Release(version=version, yanked=version in {"5.10.0", "4.52.0"})
    for version in (
        "5.9.1", "5.10.0", "5.10.2", "5.10.1", "5.9.0", "5.2.0", "5.0.0", "5.0.0rc3", "4.57.6", "4.57.1", "4.52.0",
        "4.52.1", "4.51.3", "5.11.0rc1", "5.9.1.post1",
    )
)  # fmt: skip


def chosen(text: str, *, pre: bool = False) -> tuple[str, ...]:
    return select(parse_selector(text), RELEASES, package="transformers", pre=pre).versions


@pytest.mark.parametrize(
    ("text", "versions"),
    [
        ("latest", ("5.10.2",)),
        ("latest<5.10", ("5.9.1.post1",)),
        ("latest>=4.57,<5", ("4.57.6",)),
        ("latest <=5.0.0rc3", ("5.0.0rc3",)),
        ("latest-minors:1", ("5.10.2",)),
        ("latest-minors:3", ("5.10.2", "5.9.1.post1", "5.2.0")),
        ("latest-minors:99", ("5.10.2", "5.9.1.post1", "5.2.0", "5.0.0", "4.57.6", "4.52.1")),
        ("latest-patches", ("5.10.2", "5.9.1.post1", "5.2.0", "5.0.0", "4.57.6", "4.52.1")),
        ("oldest", ("4.52.1",)),
        (">=5.2,<5.10", ("5.9.1.post1", "5.9.1", "5.9.0", "5.2.0")),
        ("==5.9.*", ("5.9.1.post1", "5.9.1", "5.9.0")),
        ("~=4.57.0", ("4.57.6", "4.57.1")),
        ("!=5.10.2, >5.9.1", ("5.10.1",)),
        ("<5.0.0", ("4.57.6", "4.57.1", "4.52.1")),
        (">=5.0.0rc1,<5.1", ("5.0.0", "5.0.0rc3")),
        ("5.2", ("5.2",)),
        ("==5.2.0", ("5.2.0",)),
    ],
)
def test_a_selector_means_these_releases(text: str, versions: tuple[str, ...]) -> None:
    assert chosen(text) == versions


def test_pre_releases_count_where_they_are_asked_for() -> None:
    assert chosen("latest", pre=True) == ("5.11.0rc1",)
    assert chosen("latest-minors:2", pre=True) == ("5.11.0rc1", "5.10.2")
    assert chosen("<5.2,>4.60", pre=True) == ("5.0.0", "5.0.0rc3")
    assert chosen("5.11.0rc1") == ("5.11.0rc1",)


def test_a_yanked_release_is_taken_when_it_is_pinned_and_then_said() -> None:
    found = select(Exact("5.10"), RELEASES, package="transformers")

    assert found.versions == ("5.10",)
    assert found.notes == ("transformers 5.10 is yanked; it is taken because it is pinned exactly.",)
    assert select(Exact("5.9.0"), RELEASES, package="transformers").notes == ()
    assert select(Exact("6.0.0"), RELEASES, package="transformers").versions == ("6.0.0",)


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("==5.10.0,<6", "5.10.0 is yanked"),
        ("<4.52", "4.51.3 is too old for the harness"),
        (">5.10.2", r"5.11.0rc1 is a pre-release \(--pre\)"),
        (">6", "selects no release"),
        ("latest<4.52", "4.51.3 is too old for the harness"),
    ],
)
def test_a_selector_that_means_nothing_says_why(text: str, words: str) -> None:
    with pytest.raises(ConfigurationError, match=words) as caught:
        chosen(text)

    assert "4.52.1 to 5.10.2" in (caught.value.remedy or "")


def test_of_no_releases_none_is_the_latest() -> None:
    for text in ("latest", "oldest", "latest-patches"):
        with pytest.raises(ConfigurationError, match="selects no release"):
            select(parse_selector(text), (), package="peft")


@pytest.mark.parametrize(
    ("text", "selector"),
    [
        ("5.5.0", Exact("5.5.0")),
        (" == 5.5 ", Exact("5.5")),
        ("v5.5.0", Exact("5.5.0")),
        ("5.0.0rc3", Exact("5.0.0rc3")),
        ("latest", Latest()),
        ("oldest", Oldest()),
        ("latest-patches", LatestPatches()),
        ("latest-minors:12", LatestPatches(minors=12)),
        ("git+https://host/o/n@main", SourceSelector(kind="git", text="git+https://host/o/n@main")),
        ("./peft", SourceSelector(kind="path", text="./peft")),
        ("/srv/peft", SourceSelector(kind="path", text="/srv/peft")),
        ("~/peft", SourceSelector(kind="path", text="~/peft")),
        ("peft-0.22.0-py3-none-any.whl", SourceSelector(kind="wheel", text="peft-0.22.0-py3-none-any.whl")),
        ("/w/peft-0.22.0-py3-none-any.whl", SourceSelector(kind="wheel", text="/w/peft-0.22.0-py3-none-any.whl")),
    ],
)
def test_what_is_written_is_read(text: str, selector: object) -> None:
    assert parse_selector(text) == selector


def test_a_range_is_read() -> None:
    found = parse_selector(">=5.2, <5.6")

    assert isinstance(found, Range)
    assert set(map(str, found.specifiers)) == {">=5.2", "<5.6"}


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("latests", "did you mean 'latest'"),
        ("latest-minor:3", "did you mean 'latest-minors:N'"),
        ("latest-minors", "did you mean 'latest-minors:N'"),
        ("latest<zero", "is not a range of versions"),
        ("latest-minors:0", "of how many minors"),
        pytest.param(f"latest-minors:{'9' * 5000}", "is no selector of versions", id="more minors than there are"),
        ("newest", "is no selector of versions"),
        (">=zero", "is not a range of versions"),
        ("=>5", "is not a version"),
        ("5,5,0", "did you mean '5.5.0'"),
        ("", "is not a version"),
        ("5.5.0+cpu", "did you mean '5.5.0'"),
        ("1!5.0", "epoch"),
        ("https://host/o/n", "git\\+https://HOST"),
        ("file:", "names no place on this machine"),
        ("file://host/peft", "names no place on this machine"),
        ("git+host/o/n", "is no git repository"),
        ("https://host/peft-1-py3-none-any.whl", "download it first"),
    ],
)
def test_what_is_no_selector_says_what_was_meant(text: str, words: str) -> None:
    with pytest.raises(ValueError, match=words):
        parse_selector(text)


@pytest.mark.parametrize(
    "text",
    [
        "https://me:secret@host/o/n@main",
        "git+ftp://secret@host/o/n@main",
        "https://host/peft-1-py3-none-any.whl?token=secret",
        "https://me:secret@host/peft-1-py3-none-any.whl",
        "file://me:secret@host/peft",
    ],
)
def test_a_refused_address_is_shown_without_its_credentials(text: str) -> None:
    with pytest.raises(ValueError, match=r"host/") as refused:
        parse_selector(text)

    assert "secret" not in str(refused.value)
    assert "@main" in str(refused.value) or "main" not in text


numbers = st.tuples(st.integers(4, 6), st.integers(0, 60), st.integers(0, 3))
lists = st.lists(
    st.builds(
        lambda parts, yanked, suffix: Release(version=".".join(map(str, parts)) + suffix, yanked=yanked),
        numbers, st.booleans(), st.sampled_from(["", "", "", "rc1", ".dev0", ".post1"]),
    ),
    max_size=30,
)  # fmt: skip


@given(releases=lists, text=st.sampled_from(["latest", "latest-minors:2", "latest-patches", "oldest", ">=4.60"]))
def test_what_is_selected_is_offered_whole_and_in_order(releases: list[Release], text: str) -> None:
    try:
        versions = select(parse_selector(text), releases, package="transformers").versions
    except ConfigurationError:
        versions = ()
    # An index has each version once; of two in a made-up list the last counts.
    usable = {
        it.version: it.number
        for it in newest_first(releases)
        if not it.yanked and not it.number.is_prerelease and it.number >= Version(OLDEST["transformers"])
    }

    assert set(versions) <= usable.keys()
    assert sorted(map(Version, versions), reverse=True) == [Version(it) for it in versions]
    if text == "latest" and usable:
        assert Version(versions[0]) == max(usable.values())
    if text == "oldest" and usable:
        assert Version(versions[0]) == min(usable.values())
    if text == "latest-patches":
        assert {(it.major, it.minor) for it in map(Version, versions)} == {(i.major, i.minor) for i in usable.values()}
        for version in map(Version, versions):
            assert version == max(
                it for it in usable.values() if (it.major, it.minor) == (version.major, version.minor)
            )
    if text == ">=4.60":
        assert len(versions) == sum(it >= Version("4.60") for it in usable.values())


def test_ages_are_said_in_their_largest_unit() -> None:
    now = datetime(2026, 11, 28, 12, tzinfo=UTC)

    said = [age(now - timedelta(seconds=seconds), now) for seconds in (0, 59, 60, 3600, 7300, 86400, 10 * 86400)]
    assert said == ["less than a minute", "less than a minute", "1 minute", "1 hour", "2 hours", "1 day", "10 days"]
    assert age(now + timedelta(days=1), now) == "less than a minute"


def test_times_are_read_in_utc() -> None:
    assert utc("2026-11-21T12:24:32Z") == utc("2026-11-21T12:24:32") == utc("2026-11-21T13:24:32+01:00")
