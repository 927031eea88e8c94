"""``harness merge`` as it is typed: what it shows, what runs after it, and a merge shared out with it."""

from __future__ import annotations

import io
import json
import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest
from merge_samples import Sample, assert_merged, build
from rich.console import Console

from harness.cli import engine
from harness.merge import errors, merge, plan_merge


@pytest.fixture
def sample(tmp_path: Path) -> Sample:
    return build(tmp_path)


def typed(sample: Sample, *words: str | Path, base: str | None = None) -> subprocess.CompletedProcess[str]:
    """Type the command in the directory that holds base and adapter."""
    command = [sys.executable, "-m", "harness", "merge", "--base", base or "base", "--adapter", "adapter"]
    place = sample.base.parent
    return subprocess.run(
        [*command, *map(str, words)],
        cwd=place,
        env={**os.environ, "MOE_LORA_HARNESS_CACHE": str(place / "cache"), "COLUMNS": "200"},
        check=False,
        capture_output=True,
        text=True,
        stdin=subprocess.DEVNULL,
    )


def test_a_dry_run_shows_each_sort_of_tensor_once(sample: Sample, tmp_path: Path) -> None:
    done = typed(sample, "--dry-run", "--json", "plan.json")

    assert (done.returncode, done.stderr) == (0, "")
    lines = done.stdout.splitlines()
    assert (
        f"would change {len(sample.deltas)} of {len(sample.tensors)} tensors in 3 shards; nothing was written" in lines
    )
    down = next(line for line in lines if line.startswith("model.layers.*.mlp.experts.*.down_proj.weight"))
    assert down.split() == [
        "model.layers.*.mlp.experts.*.down_proj.weight", "8", "F32", "6x5", "model.layers.*.mlp.experts", "2", "1.5"
    ]  # fmt: skip
    assert not any(line.endswith(" ") for line in lines)
    assert not (tmp_path / "out").exists()

    plan = json.loads((tmp_path / "plan.json").read_text())
    row = next(row for row in plan["rows"] if row["key"] == "model.layers.1.mlp.experts.2.down_proj.weight")
    (region,) = row["regions"]
    (term,) = region["terms"]
    use = plan["uses"][term["use"]]
    assert (region["start"], region["rows"], region["columns"]) == (0, 6, 5)
    assert (term["expert"], term["from_row"]) == (2, 0)
    assert (use["module"], use["rank"], use["scaling"]) == ("model.layers.1.mlp.experts", 2, 1.5)
    assert use["io_layout"] == {"value": "standard", "by": "shape"}
    assert use["b_packing"] == {"value": "rank_major", "by": "peft-default"}
    assert plan["estimate"]["peak_memory_bytes"] > 0


def test_a_dry_run_says_of_the_output_what_the_merge_would(sample: Sample, tmp_path: Path) -> None:
    changed = sum(sample.tensors[key].nbytes for key in sample.deltas)
    fine = typed(sample, "--dry-run", "--out", "new/out", "--json", "plan.json")
    (tmp_path / "out").mkdir()
    (tmp_path / "file").touch()
    taken = typed(sample, "--dry-run", "--out", "out")
    below = typed(sample, "--dry-run", "--out", "file/out")

    assert (fine.returncode, fine.stderr) == (0, "")
    output = json.loads((tmp_path / "plan.json").read_text())["output"]
    assert (output["path"], output["needed_bytes"]) == (str(tmp_path / "new" / "out"), changed)
    assert output["free_bytes"] > changed
    assert (taken.returncode, "exists" in taken.stderr) == (2, True)
    assert (below.returncode, f"{tmp_path}/file/out could not be written: Not a directory" in below.stderr) == (1, True)
    assert not (tmp_path / "new").exists()


def test_two_scales_of_one_sort_do_not_read_as_a_fraction(sample: Sample) -> None:
    done = typed(sample, "--dry-run", "--adapter", "adapter", "--weight", "1", "--weight", "8")

    down = next(line for line in done.stdout.splitlines() if ".down_proj.weight" in line)
    assert down.endswith(" 1.5, 12")


def test_an_adapter_given_twice_is_noted(sample: Sample) -> None:
    once, twice = typed(sample, "--dry-run"), typed(sample, "--dry-run", "--adapter", "./adapter/")

    assert "given 2 times" not in once.stdout
    assert "note: the adapter adapter is given 2 times, so its deltas are added 2 times" in twice.stdout


def test_with_torch_alone_the_engine_runs_here(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    """It imports no other library (tests/repository/test_layers.py), so that no environment of 1.3 GB need be made."""

    def asked(name: str) -> object:
        return {"torch": "a spec"}.get(name)

    def made(_stack: object) -> None:
        pytest.fail("an environment was made")

    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(engine.importlib.util, "find_spec", asked)
    monkeypatch.setattr(engine, "ensure_environment", made)

    command = engine.engine_command("harness.merge.auditing", Console(file=io.StringIO()))

    assert command[0] == sys.executable
    assert command[-1].endswith("/harness/merge/auditing/__main__.py")


def test_without_torch_the_environment_that_is_made_is_said(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    ready: list[str] = []
    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(tmp_path))
    monkeypatch.setattr(engine.importlib.util, "find_spec", lambda _name: None)
    monkeypatch.setattr(engine, "has_environment", ready.__contains__)
    monkeypatch.setattr(engine, "ensure_environment", lambda _stack: SimpleNamespace(python="python"))
    said = [io.StringIO(), io.StringIO()]

    engine.engine_command("harness.merge", Console(file=said[0]))
    ready.append(engine.load_setup().config.declared[0].id)
    engine.engine_command("harness.merge", Console(file=said[1]))

    assert "once, about 1.3 GB on disk" in said[0].getvalue()
    assert "once" not in said[1].getvalue()


def test_what_follows_a_merge_runs_once_it_is_published(sample: Sample, tmp_path: Path) -> None:
    done = typed(sample, "--out", "out", "--then", "sh -c 'ls \"$1\" > seen' hook {out}")

    assert done.returncode == 0, done.stderr
    assert set((tmp_path / "seen").read_text().split()) == {path.name for path in (tmp_path / "out").iterdir()}


def test_what_follows_a_merge_may_fail_and_the_merge_stays(sample: Sample, tmp_path: Path) -> None:
    done = typed(sample, "--out", "out", "--then", "sh -c 'exit 7'")

    assert done.returncode == 6
    assert "the merge IS published" in done.stderr
    assert "code 7" in done.stderr
    assert_merged(sample, tmp_path / "out")


def test_what_is_quoted_is_meant_as_it_stands(sample: Sample) -> None:
    done = typed(sample, "--out", "out", "--then", r"""printf "%s\n" 'a && b' "c | \" d" e\;f""")

    assert done.returncode == 0, done.stderr
    assert done.stdout.splitlines()[-3:] == ["a && b", 'c | " d', "e;f"]


def test_an_adapter_that_was_trained_on_another_directory_here_is_noted(sample: Sample, tmp_path: Path) -> None:
    shutil.copytree(sample.base, tmp_path / "twin")
    config = sample.adapter / "adapter_config.json"
    said = json.loads(config.read_text())
    notes = []
    for named in (str(tmp_path / "twin"), str(sample.base), "ORG/NAME", "x" * 5000, 7):
        config.write_text(json.dumps(said | {"base_model_name_or_path": named}))
        done = typed(sample, "--dry-run")
        assert done.returncode == 0, done.stderr
        notes.append("was trained on" in done.stderr)

    assert notes == [True, False, False, False, False]


def test_nothing_follows_a_merge_that_failed(sample: Sample, tmp_path: Path) -> None:
    (sample.base / "model-00001-of-00003.safetensors").unlink()
    done = typed(sample, "--out", "out", "--then", "touch ran")

    assert done.returncode == 5
    assert not (tmp_path / "ran").exists()


@pytest.mark.parametrize(
    ("words", "says"),
    [
        (("--then", "no-such-program {out}"), "names no command"),
        (("--then", "'"), "cannot be read as a command"),
        (("--then", "true && touch ran"), "holds '&&'"),
        (("--then", "ls {out} | wc"), "holds '|'"),
        (("--then", "true; touch ran"), "holds ';'"),
        (("--then", "ls > ran"), "holds '>'"),
        (("--then", "echo $HOME"), "holds '$'"),
        (("--then", "echo ${HOME}"), "holds '$'"),
        (("--then", "echo {output}"), "holds '{output}'"),
        (("--then", "echo `id`"), "holds '`'"),
        (("--then", "true", "--dry-run"), "goes with neither"),
        (("--then", "true", "--shard", "1/2"), "goes with neither"),
        (("--shard", "half"), "Write I/N with 1 <= I <= N"),
        (("--shard", "2"), "Write I/N with 1 <= I <= N"),
        (("--quantization", "nf5"), "unknown quantization 'nf5'"),
        (("--weight", "0.5", "--weight", "1"), "1 adapter was given, and 2 weights"),
        (("--weight", "nan"), "has to be a finite number"),
        (("--base", "x" * 300), "does not exist"),
        (("--base", "x" * 300 + "/y"), "does not exist"),
        (("--shard", "1/2", "--assemble"), "goes with none"),
        (("--assemble", "--dry-run"), "goes with none"),
        (("--dry-run", "--shard", "9/3"), "'9/3' is not a part of a whole"),
        (("--dry-run", "--shard", "1/9"), "cannot be shared out to 9"),
        (("--dry-run", "--out", "base"), "overlaps the input"),
        (("--dry-run", "--out", "."), "overlaps the input"),
        (("--shard", "1/2", "--out", ".."), "does not name an output directory"),
        (("--out", "x" * 250), "is 250 bytes long"),
        (("--out", "x" * 235, "--shard", "1/2"), "is 247 bytes long"),
        (("--device", "warp:9"), "not on 'warp:9'"),
        (("--device", "cuda:99"), "cannot use the device 'cuda:99'"),
        (("--threads", "0"), "--threads"),
    ],
)
def test_options_that_cannot_be_are_refused_before_any_work(
    sample: Sample, tmp_path: Path, words: tuple[str, ...], says: str
) -> None:
    done = typed(sample, "--out", "out", *words)

    assert done.returncode == 2
    assert says in done.stderr
    assert "Traceback" not in done.stderr
    assert {path.name for path in tmp_path.iterdir()} <= {"base", "adapter", "cache"}


def test_a_merge_is_shared_out_and_put_together(sample: Sample, tmp_path: Path) -> None:
    first = typed(sample, "--out", "out", "--shard", "1/2")
    early = typed(sample, "--out", "out", "--assemble")
    second = typed(sample, "--out", "out", "--shard", "2/2", "--resume")
    whole = typed(sample, "--out", "out", "--assemble")

    assert "part 1 of 2: 2 shards" in first.stdout
    assert (early.returncode, "missing: 2" in early.stderr) == (2, True)
    assert (second.returncode, whole.returncode) == (0, 0)
    assert f"applied {len(sample.deltas)}/{len(sample.deltas)} tensors" in whole.stdout
    assert_merged(sample, tmp_path / "out")


def test_a_resumed_merge_says_what_it_took_over(sample: Sample, tmp_path: Path) -> None:
    """All three shards were finished when publishing failed; one is damaged before the merge is resumed."""
    out = tmp_path / "out"
    with pytest.raises(errors.OutputExistsError):
        merge(plan_merge(sample.base, sample.adapter), out, resume=True, progress=lambda *_: out.mkdir(exist_ok=True))
    out.rmdir()
    (left,) = tmp_path.glob(".out.partial-*")
    (left / "model-00002-of-00003.safetensors").write_bytes(b"")

    again = typed(sample, "--out", "out", "--resume", "--json", "report.json")
    finished = typed(sample, "--out", "out", "--resume")

    assert again.stdout.splitlines()[0] == (
        "resumed: 2 of 3 shards verified by hash and kept; 1 did not match, written again"
    )
    assert json.loads((tmp_path / "report.json").read_text())["resumed"]["kept"] == 2
    assert_merged(sample, out)
    assert finished.returncode == 2
    assert "complete already" in finished.stderr
    assert "--overwrite" not in finished.stderr


def test_swapped_directories_are_named(sample: Sample) -> None:
    done = typed(sample, "--out", "out", base="adapter")

    assert done.returncode == 5
    assert "adapter holds no config.json" in done.stderr
