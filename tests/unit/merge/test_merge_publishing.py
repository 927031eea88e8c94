"""What is on disk after a merge, after a failed one, and after one that was killed."""

from __future__ import annotations

import errno
import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from merge_samples import Sample, assert_merged, build

import harness.merge
from harness.merge import errors, merge, plan_merge
from harness.merge.base.checkpoint import LEDGER_FILE
from harness.merge.publish import publish, target

MAIN = Path(harness.merge.__file__).with_name("__main__.py")


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return build(tmp_path)


def names(folder: Path) -> set[str]:
    return {path.name for path in folder.iterdir()}


def run(sample: Sample, *words: str) -> tuple[int, list[dict[str, object]]]:
    """Run the engine by path in isolated mode; return (exit code, events)."""
    command = [
        sys.executable,
        "-I",
        "-u",
        str(MAIN),
        "--base",
        str(sample.base),
        "--adapter",
        str(sample.adapter),
        *words,
    ]
    done = subprocess.run(command, capture_output=True, text=True, check=False)

    assert done.stderr == ""
    return done.returncode, [json.loads(line) for line in done.stdout.splitlines()]


def test_every_file_of_the_base_is_there_byte_for_byte(sample: Sample, tmp_path: Path) -> None:
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "deep" / "er" / "out")

    out = tmp_path / "deep" / "er" / "out"
    assert names(out) == names(sample.base) | {"merge_manifest.json"}
    for path in sample.base.rglob("*"):
        if path.is_file() and path.suffix != ".safetensors":
            assert (out / path.relative_to(sample.base)).read_bytes() == path.read_bytes()
    for path in sample.base.glob("*.safetensors"):
        header = path.read_bytes()[: 8 + int.from_bytes(path.read_bytes()[:8], "little")]
        assert (out / path.name).read_bytes().startswith(header)
    assert names(tmp_path / "deep" / "er") == {"out"}


def test_other_copies_of_the_weights_are_left_out_and_said(sample: Sample, tmp_path: Path) -> None:
    for name in ("pytorch_model.bin", "model.gguf", "consolidated.safetensors"):
        (sample.base / name).write_bytes(b"the base's weights")
    (sample.base / "copy.safetensors").write_bytes((sample.base / "model-00001-of-00003.safetensors").read_bytes())

    report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    left_out = {"pytorch_model.bin", "model.gguf", "consolidated.safetensors", "copy.safetensors"}
    assert set(report.files_left_out) == left_out
    assert not left_out & names(tmp_path / "out")


def test_a_hub_snapshot_is_read_through_its_links_and_written_as_files(sample: Sample, tmp_path: Path) -> None:
    repository = tmp_path / "hub" / "models--some--model"
    snapshot, blobs = repository / "snapshots" / "0123abcd", repository / "blobs"
    snapshot.mkdir(parents=True)
    blobs.mkdir()
    for number, path in enumerate(p for p in sorted(sample.base.iterdir()) if p.is_file()):
        path.rename(blobs / f"blob{number}")
        (snapshot / path.name).symlink_to(f"../../blobs/blob{number}")

    merge(plan_merge(snapshot, sample.adapter), tmp_path / "out")

    assert_merged(sample, tmp_path / "out")
    assert not any(path.is_symlink() for path in (tmp_path / "out").iterdir())


def test_the_manifest_names_every_change_and_nothing_of_the_machine(sample: Sample, tmp_path: Path) -> None:
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    text = (tmp_path / "out" / "merge_manifest.json").read_text()
    manifest = json.loads(text)
    row = next(row for row in manifest["rows"] if row["key"] == "model.layers.1.mlp.experts.2.up_proj.weight")
    norm = float((sample.deltas[row["key"]] ** 2).sum() ** 0.5)
    assert {row["key"] for row in manifest["rows"]} == sample.deltas.keys()
    assert row["adapter_keys"] == ["model.layers.1.mlp.experts.base_layer"]
    assert (row["kind"], row["layer"], row["expert"], row["status"]) == ("expert", 1, 2, "applied")
    assert row["delta_norm"] == pytest.approx(norm, rel=1e-5)
    assert row["scaling"] == [1.5]
    assert manifest["io_layout"] == {"value": "standard", "by": "shape"}
    assert str(tmp_path) not in text


@pytest.mark.parametrize(
    "options", [{"accumulate": "bfloat16"}, {"threads": 0}, {"device": "meta"}, {"device": "cuda:99"}]
)
def test_a_merge_that_cannot_be_computed_so_is_refused(sample: Sample, tmp_path: Path, options: dict[str, Any]) -> None:
    with pytest.raises(errors.UsageError) as caught:
        merge(plan_merge(sample.base, sample.adapter), tmp_path / "out", **options)

    assert caught.value.exit_code == 2
    assert names(tmp_path) == {"base", "adapter"}


def test_an_existing_output_is_refused_and_untouched(sample: Sample, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    plan = plan_merge(sample.base, sample.adapter)

    with pytest.raises(errors.OutputExistsError, match="exists") as caught:
        merge(plan, tmp_path / "out")

    assert caught.value.exit_code == 2
    assert names(tmp_path / "out") == set()


def test_overwrite_replaces_a_checkpoint_whole(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")
    (out / "old.txt").write_text("old")

    merge(plan_merge(sample.base, sample.adapter), out, overwrite=True)

    assert_merged(sample, out)
    assert "old.txt" not in names(out)
    assert names(tmp_path) == {"base", "adapter", "out"}


def test_overwrite_keeps_its_hands_off_anything_else(sample: Sample, tmp_path: Path) -> None:
    plan = plan_merge(sample.base, sample.adapter)
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "thesis.tex").write_text("years of work")
    (tmp_path / "link").symlink_to(tmp_path / "home")
    (tmp_path / "file").write_text("")

    for out in ("home", "link", "file", "base", "adapter", "base/inside", "."):
        with pytest.raises(errors.UnsafeOutputError) as caught:
            merge(plan, tmp_path / out, overwrite=True)
        assert caught.value.exit_code == 2

    assert (tmp_path / "home" / "thesis.tex").read_text() == "years of work"
    assert names(tmp_path) == {"base", "adapter", "home", "link", "file"}


def test_without_an_exchange_overwriting_is_refused_before_any_work(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "out").mkdir()
    (tmp_path / "out" / "config.json").write_text("{}")

    def unsupported(_first: Path, _second: Path) -> None:
        raise OSError(errno.EINVAL, os.strerror(errno.EINVAL))

    monkeypatch.setattr(publish, "exchange", unsupported)
    with pytest.raises(errors.OverwriteUnsupportedError) as caught:
        merge(plan_merge(sample.base, sample.adapter), tmp_path / "out", overwrite=True)

    assert caught.value.exit_code == 2
    assert names(tmp_path / "out") == {"config.json"}
    assert names(tmp_path) == {"base", "adapter", "out"}


def test_a_full_disk_leaves_nothing_and_says_so(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The kernel refuses the second write, as it would on a full disk; the parents that were made are gone too."""
    real, calls = os.pwrite, []

    def full(descriptor: int, data: bytes, offset: int) -> int:
        calls.append(offset)
        if len(calls) > 1:
            raise OSError(errno.ENOSPC, os.strerror(errno.ENOSPC))
        return real(descriptor, data, offset)

    monkeypatch.setattr(os, "pwrite", full)
    with pytest.raises(errors.IncompleteMergeError, match="No space left") as caught:
        merge(plan_merge(sample.base, sample.adapter), tmp_path / "new" / "out")

    assert caught.value.exit_code == 1
    assert names(tmp_path) == {"base", "adapter"}


def test_where_the_kernel_cannot_copy_ranges_the_bytes_go_through_memory(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    def unsupported(*_arguments: object) -> int:
        raise OSError(errno.EXDEV, os.strerror(errno.EXDEV))

    monkeypatch.setattr(os, "copy_file_range", unsupported)
    merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert_merged(sample, tmp_path / "out")


def test_progress_runs_from_nothing_to_all_bytes(sample: Sample, tmp_path: Path) -> None:
    seen: list[tuple[int, int]] = []

    report = merge(plan_merge(sample.base, sample.adapter), tmp_path / "out", progress=lambda *step: seen.append(step))

    total = sum(path.stat().st_size for path in (tmp_path / "out").glob("*.safetensors"))
    assert seen == sorted(seen)
    assert seen[-1] == (total, total)
    assert report.bytes_written == total


def test_the_process_reports_in_json_lines(sample: Sample, tmp_path: Path) -> None:
    code, events = run(sample, "--out", str(tmp_path / "out"))

    assert code == 0
    assert {event["event"] for event in events[:-1]} == {"progress"}
    assert events[-1]["event"] == "report"
    assert events[-1]["applied"] == events[-1]["attempted"] == len(sample.deltas)
    assert_merged(sample, tmp_path / "out")


def test_the_process_reports_errors_and_exits_with_their_code(sample: Sample, tmp_path: Path) -> None:
    code, events = run(sample, "--out", str(sample.base))
    assert (code, events[-1]["class"]) == (2, "UnsafeOutputError")

    code, events = run(sample, "--no-such-option")
    assert (code, events[-1]["class"]) == (2, "UsageError")

    (sample.base / "model-00001-of-00003.safetensors").unlink()
    code, events = run(sample, "--out", str(tmp_path / "out"))

    assert (code, events[-1]["event"], events[-1]["class"]) == (5, "error", "InconsistentCheckpointError")
    assert events[-1]["remedy"]
    assert names(tmp_path) == {"base", "adapter"}


def test_a_dry_run_prints_the_plan_without_torch_and_writes_nothing(sample: Sample, tmp_path: Path) -> None:
    program = (
        "import sys; sys.modules['torch'] = None\n"
        f"sys.path.insert(0, {str(MAIN.parents[2])!r})\n"
        "from harness.merge.command import main\n"
        "sys.exit(main(sys.argv[1:]))"
    )
    words = ["--base", str(sample.base), "--adapter", str(sample.adapter), "--dry-run"]
    done = subprocess.run([sys.executable, "-I", "-c", program, *words], capture_output=True, text=True, check=False)

    event = json.loads(done.stdout)
    assert (done.returncode, event["event"], event["attempted"]) == (0, "plan", len(sample.deltas))
    assert {row["key"] for row in event["rows"]} == sample.deltas.keys()
    assert names(tmp_path) == {"base", "adapter"}


def test_another_merges_working_directory_is_left_alone(sample: Sample, tmp_path: Path) -> None:
    plan = plan_merge(sample.base, sample.adapter)
    checked = target.check_target(tmp_path / "out", overwrite=False, inputs=())
    with publish.working_directory(checked) as held:
        (held / "half.safetensors").write_bytes(b"half")
        merge(plan, tmp_path / "out")

        assert (held / "half.safetensors").exists()
    assert_merged(sample, tmp_path / "out")


def test_a_directory_that_only_looks_like_a_leftover_is_left_alone(sample: Sample, tmp_path: Path) -> None:
    notes = tmp_path / ".out.partial-notes"
    notes.mkdir()
    (notes / "thesis.txt").write_text("years of work")

    merge(plan_merge(sample.base, sample.adapter), tmp_path / "out")

    assert (notes / "thesis.txt").read_text() == "years of work"


def test_what_took_the_outputs_place_meanwhile_is_not_overwritten(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "out"
    out.mkdir()
    (out / "config.json").write_text("{}")

    def another(_done: int, _total: int) -> None:
        if not (tmp_path / "old").exists():
            out.rename(tmp_path / "old")
            out.mkdir()
            (out / "thesis.txt").write_text("years of work")

    with pytest.raises(errors.OutputExistsError):
        merge(plan_merge(sample.base, sample.adapter), out, overwrite=True, progress=another)

    assert (out / "thesis.txt").read_text() == "years of work"
    assert names(tmp_path) == {"base", "adapter", "out", "old"}


def test_finished_shards_outlive_a_publication_that_fails(sample: Sample, tmp_path: Path) -> None:
    out = tmp_path / "out"

    def appear(_done: int, _total: int) -> None:
        out.mkdir(exist_ok=True)

    plan = plan_merge(sample.base, sample.adapter)
    with pytest.raises(errors.OutputExistsError) as caught:
        merge(plan, out, resume=True, progress=appear)
    left = list(tmp_path.glob(".out.partial-*"))
    out.rmdir()
    merge(plan, out, resume=True)

    assert "--resume" in str(caught.value.remedy)
    assert len(left) == 1
    assert names(tmp_path) == {"base", "adapter", "out"}
    assert not any(name.startswith(".") for name in names(out))


@pytest.mark.parametrize("overwrite", [False, True])
def test_the_ledger_is_gone_before_the_output_is_there_and_back_if_it_cannot_be(
    sample: Sample, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, *, overwrite: bool
) -> None:
    """Who is killed right after the rename leaves an output without it."""
    out, seen = tmp_path / "out", []
    if overwrite:
        out.mkdir()
        (out / "config.json").write_text("{}")

    exchange = publish.exchange

    def failing(work: Path, other: Path) -> None:
        if not any(name.endswith(".safetensors") for name in names(work)):
            return exchange(work, other)  # it is tried before any work
        seen.append(names(work))
        raise OSError(errno.EIO, "as if")

    with monkeypatch.context() as patch:
        patch.setattr(publish, "exchange", failing) if overwrite else patch.setattr(Path, "rename", failing)
        with pytest.raises(errors.IncompleteMergeError):
            merge(plan_merge(sample.base, sample.adapter), out, resume=True, overwrite=overwrite)
    (work,) = tmp_path.glob(".out.partial-*")

    assert [LEDGER_FILE in files for files in seen] == [False]
    assert (work / LEDGER_FILE).read_bytes().count(b"\n") > 1

    merge(plan_merge(sample.base, sample.adapter), out, resume=True, overwrite=overwrite)
    assert not any(name.startswith(".") for name in names(out))
