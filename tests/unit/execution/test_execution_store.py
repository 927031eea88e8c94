"""Results on disk: atomic, listed, refused when they are none; texts without the machine; memory and its limits."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest
from execution_helpers import cell, wait_until
from hypothesis import given, settings
from hypothesis import strategies as st

from harness.errors import ConfigurationError, InputRefusedError
from harness.execution.files import stage_tail, tail, write_atomically
from harness.execution.loading import load_found, load_passed, load_result, load_results, result_files
from harness.execution.memory import available_mb, footprint_mb, kernel_oom_kills, resident_mb, tree
from harness.execution.redact import Redactor
from harness.execution.store import ResultStore, alone_in
from harness.result import CellResult


def result(seed: int = 0) -> CellResult:
    one = cell("lora", seed=seed)
    return CellResult(cell=one, cell_id=one.id, outcome="pass", seed=seed)


def test_a_result_is_read_back_as_it_was_written(tmp_path: Path) -> None:
    path = ResultStore(tmp_path).save(result(3))

    assert path == tmp_path / "cells" / "qwen3_moe" / "lora@tf5.5.0-peft0.19.1-trl0.25.1+seed=3.json"
    assert load_result(path) == result(3)
    assert path.stat().st_mode & 0o777 == 0o644


def test_a_failed_write_leaves_the_old_file_and_no_other(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    path = tmp_path / "x.json"
    write_atomically(path, b"old")

    def full(_descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)
    with pytest.raises(OSError, match="No space"):
        write_atomically(path, b"new")

    assert path.read_bytes() == b"old"
    assert list(tmp_path.iterdir()) == [path]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b'{"schema_version": 3', "not JSON"),
        (b"[]", "no schema_version"),
        (b'{"schema_version": 1}', "schema_version 1; this program reads 3"),
        (b'{"schema_version": 3}', "cell: Field required"),
        (b'{"schema_version": "\\ud800"}', "surrogates not allowed"),
        (b'{"threads": ' + b"1" * 5000 + b"}", "digits"),
        (b'{"threads": ' + b"1" * 400 + b"}", "digits"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[" * 40 + b"]" * 40, "nested too deeply"),
    ],
)
def test_what_is_no_result_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    path = tmp_path / "odd.json"
    path.write_bytes(content)
    with pytest.raises(InputRefusedError, match=re.escape(words)) as caught:
        load_result(path)

    assert str(path) in caught.value.message
    assert caught.value.exit_code == 5


def test_files_and_directories_are_listed_once_each(tmp_path: Path) -> None:
    one = ResultStore(tmp_path / "shards" / "one").save(result(0))
    two = ResultStore(tmp_path / "shards" / "two").save(result(1))
    (tmp_path / "shards" / "one" / "report.json").write_text("{}")

    assert result_files([tmp_path / "shards"]) == [one, two]
    assert result_files([two, tmp_path / "shards", one]) == [two, one]
    assert result_files([tmp_path / "shards" / "two" / "cells"]) == [two]
    assert [each.seed for each in load_results([tmp_path / "shards"])] == [0, 1]


@pytest.mark.parametrize("place", ["platform", "reason", "\ud800"])
def test_a_result_with_half_a_surrogate_pair_is_refused(tmp_path: Path, place: str) -> None:
    path = ResultStore(tmp_path).save(result())
    path.write_text(json.dumps(json.loads(path.read_text()) | {place: "\ud800"}))
    with pytest.raises(InputRefusedError) as caught:
        load_result(path)

    assert caught.value.message.encode()


@pytest.mark.parametrize("name", ["empty", "nowhere"])
def test_a_path_without_results_is_an_error(tmp_path: Path, name: str) -> None:
    (tmp_path / "empty").mkdir()
    with pytest.raises(ConfigurationError, match=name):
        result_files([tmp_path / name])


def test_a_planned_cell_without_a_result_is_found_and_an_older_result_is_not_its(tmp_path: Path) -> None:
    store = ResultStore(tmp_path / "out")
    done, again, never = result(0), result(1), result(2)
    store.save(again)
    store.plan([done.cell, again.cell, never.cell])
    store.save(done)
    store.finish(done.cell)
    found = load_found([tmp_path])

    assert found.results == [done]
    assert list(found.planned.values()) == [again.cell, never.cell]
    assert load_results([tmp_path]) == [again, done]


def test_a_folder_that_only_has_a_plan_is_one_in_which_nothing_was_run(tmp_path: Path) -> None:
    ResultStore(tmp_path).plan([cell()])

    assert list(load_found([tmp_path / "cells"]).planned.values()) == [cell()]


def test_a_cell_that_was_run_elsewhere_is_not_missing(tmp_path: Path) -> None:
    one, two = (ResultStore(tmp_path / name) for name in ("one", "two"))
    one.plan([cell(), result().cell])
    two.plan([cell()])
    two.save(result())

    assert load_found([tmp_path]).results == [result()]
    assert list(load_found([tmp_path]).planned.values()) == [cell()]


@pytest.mark.parametrize(
    ("content", "words"),
    [
        (b"", "not JSON"),
        (b"[" * 100_000, "nested too deeply"),
        (b"[]", "not a planned cell"),
        (b'{"family": "\\ud800"}', "surrogates not allowed"),
        (b'{"family": "[red]", "recipe": "../x"}', "not a planned cell"),
        (cell("other").model_dump_json().encode(), "but qwen3_moe/other@"),
    ],
)
def test_a_plan_that_is_none_is_refused_by_name(tmp_path: Path, content: bytes, words: str) -> None:
    ResultStore(tmp_path).plan([cell()])
    [path] = (tmp_path / "cells").rglob("*.planned")
    path.write_bytes(content)
    with pytest.raises(InputRefusedError, match=re.escape(words)) as caught:
        load_found([tmp_path])

    assert str(path) in caught.value.message


def test_a_plan_that_is_a_directory_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "cells" / "qwen3_moe" / "lora.planned"
    path.mkdir(parents=True)
    with pytest.raises(InputRefusedError, match="Is a directory"):
        load_found([tmp_path])


def test_a_log_gets_its_name_with_its_result(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    one = result()
    store.running_log_path(one.cell).write_text("second run")
    store.log_path(one.cell).write_text("first run")
    store.save(one)

    assert store.log_path(one.cell).read_text() == "second run"
    assert not store.running_log_path(one.cell).exists()


def test_the_tail_of_a_file(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_bytes(b"first\n" + b"x" * 100_000 + b"\nlast but one\nlast \xff\n\n")

    assert tail(path, lines=2) == "last but one\nlast \N{REPLACEMENT CHARACTER}"
    assert len(tail(path)) < 17_000
    assert tail(tmp_path / "none") == ""


def test_the_tail_of_a_stage_leaves_out_the_stages_after_it(tmp_path: Path) -> None:
    path = tmp_path / "log"
    path.write_text("=== stage train\nTypeError: x\n=== stage train: raised in 1 s\n=== stage merge\nok\n")

    assert stage_tail(path, "train", lines=2) == "TypeError: x\n=== stage train: raised in 1 s"
    assert stage_tail(path, "merge", lines=1) == stage_tail(path, None, lines=1) == "ok"
    assert stage_tail(tmp_path / "none", "train") == ""


HOLDER = """
import sys, time
from pathlib import Path
from harness.execution.store import alone_in
with alone_in(Path(sys.argv[1])):
    print("held", flush=True)
    time.sleep(600)
"""


def test_a_second_run_into_a_directory_is_refused_until_the_first_is_dead(tmp_path: Path) -> None:
    out = tmp_path / "out"
    with subprocess.Popen([sys.executable, "-c", HOLDER, str(out)], stdout=subprocess.PIPE, text=True) as first:
        assert first.stdout is not None
        assert first.stdout.readline() == "held\n"
        with pytest.raises(ConfigurationError, match="Another `harness matrix` is writing to") as caught, alone_in(out):
            pass
        first.kill()
    with alone_in(out):
        pass

    assert caught.value.exit_code == 2


def test_a_directory_that_cannot_be_made_is_refused_before_it_is_locked(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(ConfigurationError, match="Not a directory"), alone_in(tmp_path / "file" / "out"):
        pass


PLACES = {
    "home": Path("/home/ann"),
    "cache": Path("/home/ann/.cache/harness"),
    "env": Path("/home/ann/.cache/harness/envs/ab12"),
    "root": Path("/"),
}


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("/home/ann/x and /home/anna/x", "<home>/x and /home/anna/x"),
        ("in /home/ann. Then", "in <home>. Then"),
        ("/home/ann.old", "/home/ann.old"),
        ("/home/ann/.cache/harness/envs/ab12/lib/python3.11/site-packages/peft/x.py",
         "<env>/lib/python3.11/site-packages/peft/x.py"),
        ("/home/ann/.cache/harness/code/ff", "<cache>/code/ff"),
        ("-I/home/ann/include file:///home/ann/x", "-I<home>/include file://<home>/x"),
        ("/data/home/ann/x", "/data/home/ann/x"),
        ('File "/usr/local/py/lib/python3.11/runpy.py", line 3', 'File "<python>/lib/python3.11/runpy.py", line 3'),
        ("https://ann:s3cret@index.example/simple", "https://<credentials>@index.example/simple"),
        ("a/b and 1/2", "a/b and 1/2"),
    ],
)  # fmt: skip
def test_prefixes_are_replaced_at_path_boundaries(text: str, expected: str) -> None:
    assert Redactor(PLACES).text(text) == expected


@settings(deadline=None, max_examples=60)  # the machine may be busy
@given(st.text(alphabet="/.an hoe:\n", max_size=40))
def test_no_prefix_survives_at_a_path_boundary(around: str) -> None:
    """Whatever stands around it, a path below the home directory that begins after a space is never kept."""
    text = Redactor(PLACES).text(f"{around} /home/ann/secret {around}")

    assert " /home/ann/secret" not in text
    assert "<home>/secret" in text


def test_links_are_known_by_both_names(tmp_path: Path) -> None:
    (tmp_path / "real").mkdir()
    (tmp_path / "link").symlink_to(tmp_path / "real")
    redactor = Redactor({"env": tmp_path / "link"})

    assert redactor.text(f"{tmp_path / 'link'}/a {tmp_path / 'real'}/b") == "<env>/a <env>/b"
    assert redactor.value({str(tmp_path): [str(tmp_path / "real"), 1, None]}) == {str(tmp_path): ["<env>", 1, None]}


def test_memory_of_a_tree_is_what_its_processes_hold() -> None:
    """A parent and a child that each fill 64 MiB of their own."""
    fill = "b = bytearray(64 * 1024 * 1024); b[::4096] = b'x' * len(b[::4096])"
    child = f"{fill}; print('ready', flush=True); import time; time.sleep(600)"
    code = f"{fill}; import subprocess, sys; subprocess.run([sys.executable, '-c', {json.dumps(child)}])"
    process = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, start_new_session=True)
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == b"ready\n"
        assert wait_until(lambda: len(tree(process.pid)) == 2)
        resident, footprint = resident_mb(tree(process.pid)), footprint_mb(tree(process.pid))
    finally:
        os.killpg(process.pid, 9)
        process.communicate()

    assert 128 < footprint <= resident < 192
    assert tree(process.pid) == []


def test_the_kernels_count_of_memory_kills_is_read_from_either_cgroup_version(tmp_path: Path) -> None:
    membership = tmp_path / "cgroup"
    membership.write_text("9:name=systemd:/\n4:memory:/box\n0::/\n")
    (tmp_path / "memory").mkdir()
    (tmp_path / "memory" / "memory.oom_control").write_text("oom_kill_disable 0\nunder_oom 0\noom_kill 3\n")
    assert kernel_oom_kills(proc=membership, root=tmp_path) == 3

    membership.write_text("0::/user/box\n")
    (tmp_path / "user" / "box").mkdir(parents=True)
    (tmp_path / "user" / "box" / "memory.events").write_text("low 0\nhigh 0\nmax 9\noom 2\noom_kill 2\n")
    assert kernel_oom_kills(proc=membership, root=tmp_path) == 2
    assert kernel_oom_kills(proc=tmp_path / "none", root=tmp_path) is None


def test_the_memory_that_there_is_is_that_of_the_control_group(tmp_path: Path) -> None:
    """Its page cache, which the kernel gives up first, counts as free."""
    whole = psutil.virtual_memory().available / 2**20
    membership = tmp_path / "cgroup"
    assert available_mb(proc=tmp_path / "none", root=tmp_path) == pytest.approx(whole, rel=0.2)

    membership.write_text("4:memory:/box\n")
    (tmp_path / "memory").mkdir()
    for name, value in (("limit_in_bytes", 500 * 2**20), ("usage_in_bytes", 300 * 2**20)):
        (tmp_path / "memory" / f"memory.{name}").write_text(f"{value}\n")
    (tmp_path / "memory" / "memory.stat").write_text(f"cache 7\ntotal_inactive_file {100 * 2**20}\n")
    assert available_mb(proc=membership, root=tmp_path) == 300

    membership.write_text("0::/user/box\n")
    group = tmp_path / "user" / "box"
    group.mkdir(parents=True)
    (group / "memory.max").write_text("max\n")
    (group / "memory.current").write_text("5\n")
    (group / "memory.stat").write_text("inactive_file 5\n")
    assert available_mb(proc=membership, root=tmp_path) == pytest.approx(whole, rel=0.2)
    (group / "memory.max").write_text(f"{64 * 2**20}\n")
    assert available_mb(proc=membership, root=tmp_path) == 64


def passed(outcome: str = "pass", started: str = "2026-11-01T00:00:00Z", **others: str) -> CellResult:
    return result().model_copy(update={"outcome": outcome, "started": started, **others})


def test_a_result_knows_when_its_cell_last_passed(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    first = store.with_history(passed("error"))
    store.save(first)
    second = store.with_history(passed("pass", "2026-11-02T00:00:00Z"))
    store.save(second)
    third = store.with_history(passed("error", "2026-11-03T00:00:00Z"))
    store.save(third)
    fourth = store.with_history(passed("error", "2026-11-04T00:00:00Z"))

    assert (first.last_passed, second.last_passed) == (None, None)
    assert third.last_passed == fourth.last_passed == "2026-11-02T00:00:00Z"


def test_what_cannot_be_read_is_no_history(tmp_path: Path) -> None:
    store = ResultStore(tmp_path)
    path = store.result_path(result().cell)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text('{"outcome": "pass"}')

    assert store.with_history(passed("error")).last_passed is None


@pytest.mark.parametrize("what", [result_files, load_results, load_found, load_passed])
def test_a_pipe_is_refused_and_not_waited_for(tmp_path: Path, what: Callable[[list[Path]], object]) -> None:
    pipe = tmp_path / "pipe"
    os.mkfifo(pipe)
    with pytest.raises(ConfigurationError, match="what comes through a pipe or a device is not read"):
        what([pipe])
    reading, writing = os.pipe()
    try:
        with pytest.raises(ConfigurationError, match="what comes through a pipe or a device is not read"):
            what([Path(f"/dev/fd/{reading}")])
    finally:
        os.close(reading)
        os.close(writing)


@pytest.mark.parametrize("what", [load_results, load_found, load_passed])
def test_a_pipe_among_results_is_refused_by_its_name(tmp_path: Path, what: Callable[[list[Path]], object]) -> None:
    (tmp_path / "cells" / "qwen3_moe").mkdir(parents=True)
    os.mkfifo(tmp_path / "cells" / "qwen3_moe" / "a.json")

    with pytest.raises(InputRefusedError, match=r"a\.json: cannot be read: it is a pipe or a device") as caught:
        what([tmp_path])
    assert caught.value.exit_code == 5


@pytest.mark.parametrize("rows", [[{"passed": True}], [{"cell": 3, "passed": True}], ["a"], [{"cell": "a"}, None]])
def test_a_baseline_of_another_shape_is_refused_by_its_row(tmp_path: Path, rows: list[object]) -> None:
    (tmp_path / "report.json").write_text(json.dumps({"rows": rows}))

    with pytest.raises(InputRefusedError, match=r"report\.json: rows\.\d is no row of a report") as caught:
        load_passed([tmp_path / "report.json"])
    assert f"rows.{len(rows) - 1} " in caught.value.message


def test_a_folder_with_a_report_alone_is_a_baseline(tmp_path: Path) -> None:
    """As a published report is. Where there are results, these are what passed or did not."""
    (tmp_path / "report.json").write_text(json.dumps({"rows": [{"cell": "a", "passed": True}]}))

    assert load_passed([tmp_path]) == {"a"}
    ResultStore(tmp_path).save(passed("error"))
    assert load_passed([tmp_path]) == frozenset()


def test_a_baseline_is_results_or_a_report(tmp_path: Path) -> None:
    ResultStore(tmp_path / "out").save(passed())
    report = {"rows": [{"cell": "a", "passed": True}, {"cell": "b", "passed": False}, {"cell": "c", "passed": "yes"}]}
    (tmp_path / "report.json").write_text(json.dumps(report))
    (tmp_path / "other.json").write_text("[]")

    assert load_passed([tmp_path / "out", tmp_path / "report.json"]) == {result().cell_id, "a"}
    ResultStore(tmp_path / "out").save(passed("error"))
    assert load_passed([tmp_path / "out"]) == frozenset()
    with pytest.raises(InputRefusedError, match=r"neither a result of a cell nor a report\.json"):
        load_passed([tmp_path / "other.json"])
