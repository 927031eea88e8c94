"""Where a base or an adapter is looked for: a directory, or a name in the hub's cache, which is never the network."""

from __future__ import annotations

from pathlib import Path

import pytest
from merge_samples import Sample, assert_merged, build

from harness.merge import assemble, audit, errors, merge, merge_part, plan_merge

COMMIT = "0123456789abcdef0123456789abcdef01234567"


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return build(tmp_path)


@pytest.fixture
def cache(sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A hub cache that holds the sample's base as some/model, with its files in ``blobs``."""
    repository = tmp_path / "cache" / "models--some--model"
    snapshot, blobs = repository / "snapshots" / COMMIT, repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    (repository / "refs" / "pr").mkdir(parents=True)
    (repository / "refs" / "main").write_text(COMMIT)
    (repository / "refs" / "pr" / "1").write_text(COMMIT + "\n")
    (repository / "refs" / "garbled").write_bytes(COMMIT.encode() + b"\xff\xfe")
    for number, path in enumerate(p for p in sorted(sample.base.iterdir()) if p.is_file()):
        path.rename(blobs / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")
    monkeypatch.setenv("HF_HUB_CACHE", str(tmp_path / "cache"))
    monkeypatch.chdir(tmp_path)
    return repository


@pytest.mark.parametrize("name", ["some/model", "some/model@main", f"some/model@{COMMIT}", "some/model@pr/1"])
@pytest.mark.usefixtures("cache")
def test_a_name_is_found_in_the_cache(sample: Sample, tmp_path: Path, name: str) -> None:
    merge(plan_merge(Path(name), sample.adapter), tmp_path / "out")

    assert_merged(sample, tmp_path / "out")


def test_paths_may_be_strings_one_or_several(sample: Sample, tmp_path: Path) -> None:
    base, adapter, out = (str(path) for path in (sample.base, sample.adapter, tmp_path / "out"))

    merge(plan_merge(base, adapter), out)

    assert_merged(sample, tmp_path / "out")
    assert audit(base, adapter, out).ok
    assert plan_merge(base, [adapter, sample.adapter], weights=[1, -1]).attempted == len(sample.deltas)
    merge_part(plan_merge(base, adapter), f"{out}2", part=1, parts=1)
    assemble(plan_merge(base, adapter), f"{out}2")
    assert_merged(sample, tmp_path / "out2")


def test_a_string_of_letters_is_one_directory(sample: Sample) -> None:
    with pytest.raises(errors.InputNotFoundError, match="adapter directory no-such-adapter does not exist"):
        plan_merge(sample.base, "no-such-adapter")


@pytest.mark.parametrize("adapter", [3, [3], b"adapter"])
def test_what_is_no_path_is_a_type_error(sample: Sample, adapter: object) -> None:
    with pytest.raises(TypeError):
        plan_merge(sample.base, adapter)


@pytest.mark.parametrize(
    ("name", "says"),
    [
        ("other/model", "no model other/model in the hub's cache"),
        ("some/model@v2", "not its revision v2"),
        ("some/model@../../..", "does not exist"),
        ("no-such-directory", "does not exist"),
        ("a/b/c", "does not exist"),
        ("x" * 300, "does not exist"),
        ("x" * 300 + "/y", "does not exist"),
        ("some/model@" + "v" * 300, "does not exist"),
        ("some/model@garbled", "not its revision garbled"),
    ],
)
@pytest.mark.usefixtures("cache")
def test_what_is_nowhere_is_said(sample: Sample, name: str, says: str) -> None:
    with pytest.raises(errors.InputNotFoundError, match=says) as caught:
        plan_merge(Path(name), sample.adapter)

    assert caught.value.exit_code == 2
    assert caught.value.remedy


def test_a_revision_that_leads_out_of_the_cache_is_not_followed(sample: Sample, cache: Path) -> None:
    (cache / "refs" / "main").write_text("../../../base")

    with pytest.raises(errors.InputNotFoundError):
        plan_merge(Path("some/model"), sample.adapter)


@pytest.mark.parametrize("variable", ["HF_HUB_CACHE", "HF_HOME"])
@pytest.mark.usefixtures("cache")
def test_a_cache_in_the_home_of_nobody_is_said(sample: Sample, monkeypatch: pytest.MonkeyPatch, variable: str) -> None:
    monkeypatch.delenv("HF_HUB_CACHE")
    monkeypatch.setenv(variable, "~nosuchuser/hub")

    with pytest.raises(errors.InputNotFoundError, match="~nosuchuser/hub, and that home directory is nobody's"):
        plan_merge(Path("some/model"), sample.adapter)


def test_a_directory_wins_over_a_name(sample: Sample, cache: Path, tmp_path: Path) -> None:
    (tmp_path / "some").mkdir()
    (tmp_path / "some" / "model").mkdir()

    with pytest.raises(errors.InconsistentCheckpointError, match=r"model holds no config.json"):
        plan_merge(Path("some/model"), sample.adapter)
    assert cache.is_dir()


@pytest.mark.parametrize(
    ("variables", "where"),
    [
        ({"HF_HUB_CACHE": "{}/a"}, "a"),
        ({"HF_HOME": "{}/b"}, "b/hub"),
        ({"XDG_CACHE_HOME": "{}/c"}, "c/huggingface/hub"),
        ({"HOME": "{}/d"}, "d/.cache/huggingface/hub"),
    ],
)
def test_the_cache_is_where_huggingface_hub_has_it(
    sample: Sample, cache: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, variables: dict[str, str], where: str
) -> None:
    for name in ("HF_HUB_CACHE", "HF_HOME", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)
    for name, value in variables.items():
        monkeypatch.setenv(name, value.format(tmp_path))
    (tmp_path / where).mkdir(parents=True)
    cache.rename(tmp_path / where / cache.name)

    assert plan_merge(Path("some/model"), sample.adapter).attempted == len(sample.deltas)
