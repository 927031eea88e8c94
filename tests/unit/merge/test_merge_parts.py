"""One merge shared out to several machines: parts written apart, checked, and put together to the very bytes of a merge
in one piece.
"""

from __future__ import annotations

import errno
import json
import os
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from merge_samples import Sample, Spec, assert_merged, build

from harness.merge import assemble, errors, merge, merge_part, plan_merge


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return build(tmp_path, Spec(shards=5))


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def write_parts(sample: Sample, out: Path, parts: int) -> None:
    for part in range(1, parts + 1):
        merge_part(plan_merge(sample.base, sample.adapter), out, part=part, parts=parts)


@pytest.mark.parametrize("parts", [1, 2, 3, 5])
def test_the_parts_make_what_one_merge_makes(sample: Sample, tmp_path: Path, parts: int) -> None:
    out = tmp_path / "place" / "out"
    write_parts(sample, out, parts)
    before = names(out.parent)

    report = assemble(plan_merge(sample.base, sample.adapter), out)
    whole = merge(plan_merge(sample.base, sample.adapter), tmp_path / "whole")

    assert before == {f"out.part-{part}-of-{parts}" for part in range(1, parts + 1)}
    assert names(out.parent) == {"out"}
    assert contents(out) == contents(tmp_path / "whole")
    assert report.by_kind == whole.by_kind
    assert_merged(sample, out)


def test_each_shard_is_in_one_part(sample: Sample, tmp_path: Path) -> None:
    plan = plan_merge(sample.base, sample.adapter)
    reports = [merge_part(plan, tmp_path / "out", part=part, parts=3) for part in (1, 2, 3)]

    held = [name for report in reports for name in report.shards]
    assert sorted(held) == sorted(shard.name for shard in plan.base.shards)
    assert [report.bytes_written for report in reports] == [
        sum((report.path / name).stat().st_size for name in report.shards) for report in reports
    ]


@pytest.mark.parametrize(("part", "parts"), [(0, 2), (3, 2), (1, 6)])
def test_a_share_that_cannot_be_is_refused(sample: Sample, tmp_path: Path, part: int, parts: int) -> None:
    with pytest.raises(errors.UsageError):
        merge_part(plan_merge(sample.base, sample.adapter), tmp_path / "out", part=part, parts=parts)

    assert names(tmp_path) == {"base", "adapter"}


@pytest.mark.parametrize("out", [".", "base", "adapter/new"])
def test_parts_of_an_output_that_could_not_be_are_not_written(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, out: str
) -> None:
    monkeypatch.chdir(tmp_path)

    with pytest.raises(errors.UnsafeOutputError, match="overlaps the input"):
        merge_part(plan_merge(sample.base, sample.adapter), Path(out), part=1, parts=2)
    assert names(tmp_path) == {"base", "adapter"}


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _move_and_link(path: Path) -> None:
    elsewhere = path.parents[2] / "elsewhere"
    path.rename(elsewhere)
    path.symlink_to(elsewhere)


def _edit(path: Path, **changes: object) -> None:
    path.write_text(json.dumps({**json.loads(path.read_text()), **changes}))


PART = "out.part-2-of-2"


def _twice(folder: Path) -> None:
    shutil.rmtree(folder / PART)
    shutil.copytree(folder / "out.part-1-of-2", folder / PART)


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda folder: shutil.rmtree(folder / PART), "missing: 2"),
        (shutil.rmtree, "no parts"),
        (lambda folder: (folder / PART).rename(folder / "out.part-3-of-3"), "into 2 and into 3"),
        (lambda folder: _flip(folder / PART / "model-00002-of-00005.safetensors"), "is not what was written"),
        (lambda folder: (folder / PART / "model-00002-of-00005.safetensors").unlink(), "is not what was written"),
        (lambda folder: _move_and_link(folder / PART / "model-00002-of-00005.safetensors"), "is not what was written"),
        (lambda folder: (folder / PART / "merge_part.json").unlink(), "merge_part.json"),
        (lambda folder: (folder / PART / "merge_part.json").write_text("[]"), "JSON object"),
        (
            lambda folder: _edit(folder / PART / "merge_part.json", fingerprint="0"),
            "other inputs or with other options",
        ),
        (lambda folder: _edit(folder / PART / "merge_part.json", shards=[]), "does not describe"),
        (
            lambda folder: _edit(folder / PART / "merge_part.json", shards=[{"name": "../../etc/passwd"}]),
            "does not describe",
        ),
        (_twice, "every shard of the output once"),
    ],
)
def test_parts_that_do_not_fit_are_refused_and_stay(
    sample: Sample, tmp_path: Path, damage: Callable[[Path], object], says: str
) -> None:
    out = tmp_path / "place" / "out"
    write_parts(sample, out, 2)
    damage(out.parent)
    before = contents(tmp_path)

    with pytest.raises(errors.MergeError, match=says):
        assemble(plan_merge(sample.base, sample.adapter), out)

    assert contents(tmp_path) == before


def test_parts_of_another_adapter_or_option_do_not_become_an_output(sample: Sample, tmp_path: Path) -> None:
    write_parts(sample, tmp_path / "out", 2)
    with pytest.raises(errors.UsageError, match="other options"):
        assemble(plan_merge(sample.base, sample.adapter), tmp_path / "out", accumulate="float64")
    with pytest.raises(errors.UsageError, match="other options"):
        assemble(plan_merge(sample.base, sample.adapter, dtype="float16"), tmp_path / "out")
    sample.config["lora_alpha"] = 7
    sample.save_adapter()
    with pytest.raises(errors.UsageError, match="other inputs"):
        assemble(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert not (tmp_path / "out").exists()


def test_where_there_are_no_hard_links_the_shards_are_copied(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(_source: Path, _target: Path) -> None:
        raise OSError(errno.EPERM, os.strerror(errno.EPERM))

    write_parts(sample, tmp_path / "out", 2)
    monkeypatch.setattr(os, "link", unsupported)
    assemble(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert_merged(sample, tmp_path / "out")
    assert names(tmp_path) == {"base", "adapter", "out"}


def test_a_part_is_written_again_only_when_asked(sample: Sample, tmp_path: Path) -> None:
    plan = plan_merge(sample.base, sample.adapter)
    merge_part(plan, tmp_path / "out", part=1, parts=2)

    with pytest.raises(errors.OutputExistsError):
        merge_part(plan, tmp_path / "out", part=1, parts=2)
    merge_part(plan, tmp_path / "out", part=1, parts=2, overwrite=True)
    merge_part(plan, tmp_path / "out", part=2, parts=2, resume=True)
    assemble(plan, tmp_path / "out")

    assert_merged(sample, tmp_path / "out")


def test_parts_of_two_bases_that_differ_in_values_alone_do_not_become_an_output(sample: Sample, tmp_path: Path) -> None:
    """Two fine-tunes of one model have the same names, sizes, headers and configuration."""
    merge_part(plan_merge(sample.base, sample.adapter), tmp_path / "out", part=1, parts=2)
    for shard in sample.base.glob("*.safetensors"):
        _flip(shard)
    merge_part(plan_merge(sample.base, sample.adapter), tmp_path / "out", part=2, parts=2)

    with pytest.raises(errors.UsageError, match="other inputs"):
        assemble(plan_merge(sample.base, sample.adapter), tmp_path / "out")


@pytest.mark.parametrize("norm", [10**400, -1.0, 1.7e308, True, "1", None])
def test_a_part_with_a_norm_that_cannot_be_is_refused(sample: Sample, tmp_path: Path, norm: object) -> None:
    write_parts(sample, tmp_path / "out", 2)
    said = json.loads((tmp_path / PART / "merge_part.json").read_text())
    key = next(iter(said["shards"][0]["outcomes"]))
    said["shards"][0]["outcomes"][key][2] = [norm, norm]
    (tmp_path / PART / "merge_part.json").write_text(json.dumps(said))

    with pytest.raises(errors.UsageError, match="does not describe"):
        assemble(plan_merge(sample.base, sample.adapter), tmp_path / "out")


def test_a_number_of_parts_that_cannot_be_takes_no_time(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "out.part-1-of-999999999").mkdir()

    with pytest.raises(errors.UsageError, match="cannot have been shared out"):
        assemble(plan_merge(sample.base, sample.adapter), tmp_path / "out")
