"""Merges that do not finish: killed at random moments, out of disk, refused by a disk that cannot read.

Nothing half done is ever an output.
"""

from __future__ import annotations

import errno
import json
import os
import random
import shlex
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import merge_child
import pytest
from merge_samples import Sample, Spec, assert_merged, build

import harness.merge
from harness.merge import errors, merge, merge_part, plan_merge
from harness.merge.run.ledger import LEDGER_FILE

MAIN = Path(harness.merge.__file__).with_name("__main__.py")
SEED = 20261121


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def contents(folder: Path) -> dict[str, bytes]:
    return {str(path.relative_to(folder)): path.read_bytes() for path in folder.rglob("*") if path.is_file()}


@pytest.fixture
def sizeable(tmp_path: Path) -> Sample:
    """Some 25 MB in five shards: enough to be interrupted in."""
    return build(tmp_path, Spec(experts=8, hidden=256, width=320, rank=4, layers=3, shards=5))


def killed_after(sample: Sample, out: Path, seconds: float | None, **options: Any) -> int:
    """Merge in a process that gets SIGKILL after so many seconds; return its exit code."""
    child = merge_child.context().Process(target=merge_child.run, args=(sample.base, sample.adapter, out, options))
    child.start()
    child.join(seconds)
    child.kill()
    child.join()
    assert child.exitcode in {0, -9}
    return child.exitcode


def full_time(sample: Sample, out: Path) -> float:
    """Seconds that an undisturbed merge takes; the second one, since the first starts the server."""
    for number in range(2):
        start = time.perf_counter()
        killed_after(sample, out.with_name(f"warm{number}"), None)
    return time.perf_counter() - start


def test_killed_at_fifty_random_moments_there_is_no_output_or_a_whole_one(sizeable: Sample, tmp_path: Path) -> None:
    before = contents(sizeable.base), contents(sizeable.adapter)
    whole = full_time(sizeable, tmp_path / "timing" / "out")
    moments = random.Random(SEED)  # noqa: S311 - moments, not secrets
    right = contents(tmp_path / "timing" / "warm0")
    out, killed = tmp_path / "place" / "out", 0

    for _ in range(150):
        code = killed_after(sizeable, out, moments.uniform(0, whole))

        if out.exists():
            assert contents(out) == right  # published, whether or not the process lived to say so
            shutil.rmtree(out)
            whole *= 0.97  # measured on a machine that was busier then
        else:
            assert code == -9
            killed += 1
        assert all(name.startswith(".out.partial-") for name in (names(out.parent) if out.parent.exists() else ()))
        if killed == 50:
            break

    assert killed == 50
    assert (contents(sizeable.base), contents(sizeable.adapter)) == before
    merge(plan_merge(sizeable.base, sizeable.adapter), out)
    assert contents(out) == right
    assert names(out.parent) == {"out"}


def test_killed_while_overwriting_there_is_the_old_or_the_new_one(sizeable: Sample, tmp_path: Path) -> None:
    whole = full_time(sizeable, tmp_path / "timing" / "out")
    moments = random.Random(SEED)  # noqa: S311 - moments, not secrets
    new = contents(tmp_path / "timing" / "warm0")
    out = tmp_path / "place" / "out"
    out.mkdir(parents=True)
    (out / "config.json").write_text("{}")
    old, replaced = contents(out), 0

    for attempt in range(60):
        killed_after(sizeable, out, moments.uniform(0.5 * whole, 1.2 * whole), overwrite=True)
        assert contents(out) in (old, new)
        replaced += contents(out) == new
        if replaced and attempt >= 19:
            break
        whole *= 1.0 if replaced else 1.1  # measured on a machine that was idler then

    assert replaced
    assert_merged(sizeable, out)


def test_a_killed_merge_is_resumed_with_what_was_finished(sizeable: Sample, tmp_path: Path) -> None:
    whole = full_time(sizeable, tmp_path / "timing" / "out")
    moments = random.Random(SEED)  # noqa: S311 - moments, not secrets
    right = contents(tmp_path / "timing" / "warm0")
    out, kept = tmp_path / "place" / "out", 0

    for _ in range(12):
        while not out.exists():
            killed_after(sizeable, out, moments.uniform(0.3 * whole, 1.5 * whole), resume=True)
            ledgers = list(out.parent.glob(f".out.partial-*/{LEDGER_FILE}"))
            kept += any(ledger.read_bytes().count(b"\n") > 1 for ledger in ledgers)
        assert contents(out) == right
        shutil.rmtree(out)

    assert kept, "no kill came between two shards, so nothing was resumed"


def broken_disk(monkeypatch: pytest.MonkeyPatch, path: Path) -> None:
    """Let every read of a file fail, as a dying disk does; opening it still works."""
    real, real_copy = os.preadv, os.copy_file_range

    def check(descriptor: int, offset: int) -> None:
        if offset > 4096 and Path(f"/proc/self/fd/{descriptor}").readlink() == path:
            raise OSError(errno.EIO, os.strerror(errno.EIO))

    def preadv(descriptor: int, buffers: list[memoryview], offset: int) -> int:
        check(descriptor, offset)
        return real(descriptor, buffers, offset)

    def copy(source: int, target: int, count: int, start: int, offset: int) -> int:
        check(source, start + count)
        return real_copy(source, target, count, start, offset)

    monkeypatch.setattr(os, "preadv", preadv)
    monkeypatch.setattr(os, "copy_file_range", copy)


@pytest.mark.parametrize("shard", ["model-00003-of-00005.safetensors", "model-00005-of-00005.safetensors"])
def test_a_shard_that_cannot_be_read_leaves_nothing_and_is_named(
    sizeable: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, shard: str
) -> None:
    plan = plan_merge(sizeable.base, sizeable.adapter)
    broken_disk(monkeypatch, sizeable.base / shard)

    with pytest.raises(
        errors.UnreadableInputError, match=rf"{shard} cannot be (read|copied): Input/output error"
    ) as caught:
        merge(plan, tmp_path / "out")

    assert caught.value.exit_code == 5
    assert names(tmp_path) == {"base", "adapter"}


def test_after_a_read_error_the_finished_shards_are_gone_on_with(
    sizeable: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    plan = plan_merge(sizeable.base, sizeable.adapter)
    with monkeypatch.context() as patch:
        broken_disk(patch, sizeable.base / "model-00005-of-00005.safetensors")
        with pytest.raises(errors.UnreadableInputError) as caught:
            merge(plan, tmp_path / "out", resume=True)
    (left,) = tmp_path.glob(".out.partial-*")
    inodes = {path.name: path.stat().st_ino for path in left.glob("*.safetensors")}
    done = [json.loads(line)["name"] for line in (left / LEDGER_FILE).read_text().splitlines()[1:] if line]

    report = merge(plan, tmp_path / "out", resume=True)

    assert "--resume" in str(caught.value.remedy)
    assert report.to_json()["resumed"] == {"shards": 5, "kept": len(done), "rejected": 0, "foreign": 0}
    assert done
    assert {name: (tmp_path / "out" / name).stat().st_ino for name in done} == {name: inodes[name] for name in done}
    assert_merged(sizeable, tmp_path / "out")
    assert LEDGER_FILE not in names(tmp_path / "out")
    assert names(tmp_path) == {"base", "adapter", "out"}


@pytest.mark.parametrize(
    ("damage", "lost"),
    [
        (lambda left: (left / "model-00001-of-00005.safetensors").write_bytes(b""), {"kept": -1, "rejected": 1}),
        (lambda left: _flip(left / "model-00001-of-00005.safetensors"), {"kept": -1, "rejected": 1}),
        (lambda left: (left / "model-00001-of-00005.safetensors").unlink(), {"kept": -1, "rejected": 1}),
        (lambda left: _cut(left / LEDGER_FILE, 40), {"kept": -1}),
        (lambda left: (left / LEDGER_FILE).write_text("{"), None),
        (lambda left: (left / "tokenizer.json").mkdir(), {}),
    ],
)
def test_what_is_resumed_is_verified_not_trusted(
    sizeable: Sample,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    damage: Callable[[Path], object],
    lost: dict[str, int] | None,
) -> None:
    plan = plan_merge(sizeable.base, sizeable.adapter)
    with monkeypatch.context() as patch:
        broken_disk(patch, sizeable.base / "model-00005-of-00005.safetensors")
        with pytest.raises(errors.UnreadableInputError):
            merge(plan, tmp_path / "out", resume=True)
    (left,) = tmp_path.glob(".out.partial-*")
    before = {"kept": len([line for line in (left / LEDGER_FILE).read_text().splitlines()[1:] if line]), "rejected": 0}
    damage(left)

    report = merge(plan, tmp_path / "out", resume=True)

    assert report.resumed is not None
    if lost is None:
        assert (report.resumed.kept, report.resumed.foreign) == (0, 1)
    else:
        said = {"kept": report.resumed.kept, "rejected": report.resumed.rejected}
        assert said == {name: count + lost.get(name, 0) for name, count in before.items()}
    assert_merged(sizeable, tmp_path / "out")
    assert names(tmp_path) == {"base", "adapter", "out"}


def test_a_ledger_in_the_base_is_not_taken_for_that_of_this_merge(tmp_path: Path) -> None:
    """An output that lost its last step and became a base: the copy would meet this merge's own ledger, or be removed
    with it.
    """
    sample = build(tmp_path)
    (sample.base / LEDGER_FILE).write_text('{"fingerprint": "0"}\n')

    for resume in (True, False):
        report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out", resume=resume)

        assert report.files_left_out == (LEDGER_FILE,)
        assert_merged(sample, tmp_path / "out")
        assert LEDGER_FILE not in names(tmp_path / "out")
        shutil.rmtree(tmp_path / "out")


def _flip(path: Path) -> None:
    data = bytearray(path.read_bytes())
    data[-1] ^= 1
    path.write_bytes(data)


def _cut(path: Path, count: int) -> None:
    path.write_bytes(path.read_bytes()[:-count])


@pytest.mark.parametrize("changed", ["adapter", "base", "option"])
def test_another_merge_does_not_resume_what_this_one_left(
    sizeable: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, changed: str
) -> None:
    with monkeypatch.context() as patch:
        broken_disk(patch, sizeable.base / "model-00005-of-00005.safetensors")
        with pytest.raises(errors.UnreadableInputError):
            merge(plan_merge(sizeable.base, sizeable.adapter), tmp_path / "out", resume=True)
    (left,) = tmp_path.glob(".out.partial-*")
    if changed == "adapter":
        sizeable.config["lora_alpha"] = 7
        sizeable.save_adapter()
    if changed == "base":
        shard = sizeable.base / "model-00001-of-00005.safetensors"
        os.utime(shard, ns=(0, 0))
    options: dict[str, Any] = {"accumulate": "float64"} if changed == "option" else {}

    report = merge(plan_merge(sizeable.base, sizeable.adapter), tmp_path / "out", resume=True, **options)
    merge(plan_merge(sizeable.base, sizeable.adapter), tmp_path / "again", **options)

    assert not left.exists()
    assert report.resumed is not None
    assert (report.resumed.kept, report.resumed.foreign) == (0, 1)
    assert contents(tmp_path / "out") == contents(tmp_path / "again")


def test_a_merge_that_is_complete_has_nothing_to_resume(sizeable: Sample, tmp_path: Path) -> None:
    plan, out = plan_merge(sizeable.base, sizeable.adapter), tmp_path / "out"
    first = merge(plan, out, resume=True)
    inode = out.stat().st_ino

    with pytest.raises(errors.OutputExistsError, match="complete already") as same:
        merge(plan, out, resume=True)
    with pytest.raises(errors.OutputExistsError, match="exists") as other:
        merge(plan, out, resume=True, accumulate="float64")

    assert first.resumed is None
    assert "--overwrite" not in str(same.value.remedy)
    assert "--overwrite" in str(other.value.remedy)
    assert out.stat().st_ino == inode


def test_a_part_that_is_complete_has_nothing_to_resume(sizeable: Sample, tmp_path: Path) -> None:
    plan, out = plan_merge(sizeable.base, sizeable.adapter), tmp_path / "out"
    merge_part(plan, out, part=1, parts=2, resume=True)

    with pytest.raises(errors.OutputExistsError, match="part 1 of 2 is complete already"):
        merge_part(plan, out, part=1, parts=2, resume=True)
    with pytest.raises(errors.UsageError, match="other inputs or with other options"):
        merge_part(plan, out, part=1, parts=2, resume=True, accumulate="float64")


def on_small_tmpfs(
    sample: Sample, size: int, out: str, *words: str, base_too: bool = False
) -> tuple[int, dict[str, Any], list[str]]:
    """Merge to a tmpfs of ``size`` bytes in a mount namespace of its own; return exit code, last event and what was
    left there.

    ``base_too``: the base is copied there first.
    """
    copy = f"cp -r {shlex.quote(str(sample.base))} ." if base_too else "true"
    script = (
        f'mount -t tmpfs -o size="$1" tmpfs "$2" && cd "$2" && {copy} && shift 2 && "$@"; code=$?;'
        ' ls -A "$0" >&2; exit $code'
    )
    place = sample.base.parent / "small"
    place.mkdir(exist_ok=True)
    base = place / "base" if base_too else sample.base
    engine = [sys.executable, "-I", str(MAIN), "--base", str(base), "--adapter", str(sample.adapter)]
    inside = ["sh", "-c", script, str(place), str(size), str(place), *engine, "--out", str(place / out), *words]
    done = subprocess.run(
        ["unshare", "--user", "--map-root-user", "--mount", *inside], capture_output=True, text=True, check=False
    )
    return done.returncode, json.loads(done.stdout.splitlines()[-1]), done.stderr.split()


@pytest.fixture
def namespaces() -> None:
    """Skip where the kernel gives ordinary users no mount namespaces: there is no small disk to fill then."""
    probe = ["unshare", "--user", "--map-root-user", "--mount", "true"]
    if subprocess.run(probe, capture_output=True, check=False).returncode != 0:
        pytest.skip("this kernel or container allows no user namespaces")


@pytest.mark.usefixtures("namespaces")
def test_a_disk_that_is_too_small_is_refused_before_anything_is_written(sizeable: Sample) -> None:
    code, event, left = on_small_tmpfs(sizeable, 4 * 1024 * 1024, "out")

    assert (code, event["class"]) == (1, "IncompleteMergeError")
    assert "are free" in event["message"]
    assert left == []


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("share", [0.2, 0.6, 0.97])
def test_a_disk_that_fills_up_on_the_way_leaves_nothing(tmp_path: Path, share: float) -> None:
    """Only attention changes, so most bytes are copied, and nobody can know beforehand whether the one file system will
    share them.
    """
    sample = build(tmp_path, Spec(experts=8, hidden=256, width=320, layers=3, shards=5, parameters=()))
    total = sum(-(-path.stat().st_size // 4096) * 4096 for path in sample.base.rglob("*") if path.is_file())

    code, event, left = on_small_tmpfs(sample, int((1 + share) * total), "new/out", base_too=True)

    assert (code, event["class"]) == (1, "IncompleteMergeError")
    assert "No space left on device" in event["message"]
    assert "Free some space" in str(event["remedy"])
    assert left == ["base"]


@pytest.mark.usefixtures("namespaces")
@pytest.mark.parametrize("words", [(), ("--dry-run",)])
def test_on_another_disk_copied_bytes_are_counted_before_anything_is_written(
    tmp_path: Path, words: tuple[str, ...]
) -> None:
    """Two file systems share no bytes, so the whole output has to fit."""
    sample = build(tmp_path, Spec(experts=8, hidden=256, width=320, layers=3, shards=5, parameters=()))
    total = sum(path.stat().st_size for path in sample.base.glob("*.safetensors"))

    code, event, left = on_small_tmpfs(sample, int(0.9 * total), "new/out", *words)

    assert (code, event["class"]) == (1, "IncompleteMergeError")
    assert f"needs at least {total} bytes" in event["message"]
    assert left == []


POOLS = 4
"""To hash, to check the adapter, to merge and to sync: each starts a thread at least."""


@pytest.mark.parametrize("resume", [False, True])
@pytest.mark.parametrize("started", range(6))
def test_a_thread_that_cannot_be_started_leaves_nothing(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, started: int, resume: bool
) -> None:
    """The limit is met by each thread that a merge starts: to hash, to check the adapter, to merge and to sync."""
    sample = build(tmp_path)
    plan, before = plan_merge(sample.base, sample.adapter), names(tmp_path)
    real, left = threading._start_new_thread, iter(range(started))  # type: ignore[attr-defined]  # what fails in a full container
    met = []

    def limited(*arguments: Any) -> Any:
        if next(left, None) is None:
            met.append(started)
            raise RuntimeError("can't start new thread")
        return real(*arguments)

    monkeypatch.setattr(threading, "_start_new_thread", limited)
    refused = False
    try:
        merge(plan, tmp_path / "out", threads=2, resume=resume)
    except errors.ThreadLimitError as error:
        refused = "no further thread" in error.message
    monkeypatch.undo()
    # A pool starts no thread while one of its own is idle, so the clock decides whether the last of them are needed.
    assert refused == bool(met)
    assert met or started >= POOLS
    if not met:
        assert_merged(sample, tmp_path / "out")
        return

    assert not (tmp_path / "out").exists()
    assert resume or names(tmp_path) == before
    merge(plan, tmp_path / "out", resume=resume)
    assert_merged(sample, tmp_path / "out")


def test_an_interrupt_leaves_nothing(sizeable: Sample, tmp_path: Path) -> None:
    def interrupt(_done: int, _total: int) -> None:
        raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        merge(plan_merge(sizeable.base, sizeable.adapter), tmp_path / "out", progress=interrupt)

    assert names(tmp_path) == {"base", "adapter"}


def test_terminated_the_process_leaves_nothing(tmp_path: Path) -> None:
    sample = build(tmp_path, Spec(experts=8, hidden=512, width=640, rank=4, layers=4, shards=5))
    command = [sys.executable, "-I", "-u", str(MAIN), "--base", str(sample.base), "--adapter", str(sample.adapter)]
    with subprocess.Popen([*command, "--out", str(tmp_path / "out")], stdout=subprocess.PIPE, text=True) as process:
        while not list(tmp_path.glob(".out.partial-*")) and process.poll() is None:
            time.sleep(0.001)
        process.terminate()
        process.wait()

    assert process.returncode == 130
    assert names(tmp_path) == {"base", "adapter"}
