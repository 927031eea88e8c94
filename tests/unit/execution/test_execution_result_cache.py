"""Kept results: what is kept, what is found again, what is ignored, how room is made, and two processes at once."""

from __future__ import annotations

import json
import os
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
from execution_helpers import cell
from reuse_samples import a_result, entry_of, fingerprints, with_stage

from harness.errors import ConfigurationError
from harness.execution.result_cache import ResultCache, worth_keeping
from harness.execution.result_room import forget_results, kept_results, make_room, results_room
from harness.result import CellResult, StageResult

KEY = fingerprints().of(cell("lora"), "identity") or ""


def kept(root: Path, key: str = KEY, **changes: Any) -> Path:
    """Keep a result and return its file."""
    assert ResultCache(root).keep(a_result(**changes), key, log=b"log\n", warn=pytest.fail)
    return entry_of(root, key)


def imported_anew(why: str) -> CellResult:
    """A pass whose libraries imported in another order than usual, after they had not in that."""
    made = a_result(import_first="trl")
    reason = f"imports when trl comes first; when peft does: {why} [called by harness/worker/libraries.py:40 in f]"
    made.stages["import"] = StageResult(result="pass", reason=reason)
    return made


def test_a_result_is_found_again_as_it_was_with_its_log(tmp_path: Path) -> None:
    kept(tmp_path)
    found = ResultCache(tmp_path).find(cell("lora"), KEY, warn=pytest.fail)

    assert found is not None
    assert found.result == a_result(log=None)
    assert found.log == b"log\n"
    assert ResultCache(tmp_path).find(cell("lora"), "0" * 64, warn=pytest.fail) is None
    assert ResultCache(tmp_path).find(cell("lora"), None, warn=pytest.fail) is None


def test_a_result_is_the_cells_that_asks_by_whatever_name(tmp_path: Path) -> None:
    """A stack whose pins are declared in other words comes to the same lock, and so to the same key."""
    kept(tmp_path)
    stack = cell("lora").stack.model_copy(update={"extra_pins": ("torch",)})
    asking = cell("lora").model_copy(update={"stack": stack})
    found = ResultCache(tmp_path).find(asking, KEY, warn=pytest.fail)

    assert found is not None
    assert (found.result.cell, found.result.cell_id) == (asking, asking.id)


@pytest.mark.parametrize(
    ("result", "worth"),
    [
        (with_stage("pass"), True),
        (with_stage("fail", "kl is 0.3"), True),
        (with_stage("noop"), True),
        (with_stage("blind"), True),
        (with_stage("unsupported", "no such family"), True),
        (with_stage("not_run", "needs load, which ended in error"), True),
        (with_stage("error", "TypeError: unexpected keyword", raised=True), True),
        (with_stage("error", "the worker ended with exit status 1 before it was done"), False),
        (with_stage("error", "OSError: [Errno 28] No space left on device", raised=True), False),
        (with_stage("error", "torch.OutOfMemoryError: CUDA out of memory", raised=True), False),
        (with_stage("error", "RuntimeError: CUDA error: an illegal memory access", raised=True), False),
        (with_stage("crash", "killed by SIGSEGV"), False),
        (with_stage("oom"), False),
        (with_stage("timeout"), False),
        (with_stage("unresolvable"), False),
        (with_stage("skipped"), False),
        (imported_anew("ImportError: cannot import name 'HybridCache' from 'transformers'"), True),
        (imported_anew("AttributeError: module 'transformers' has no attribute 'x'"), True),
        (imported_anew("ImportError: libc10.so: cannot read file data: Input/output error"), False),
        (imported_anew("OSError: [Errno 5] could not read"), False),
        (imported_anew("EOFError: marshal data too short"), False),
        (imported_anew("RuntimeError: Failed to import transformers.x because of: [Errno 116] Stale"), False),
        (imported_anew("SyntaxError: source code string cannot contain null bytes"), False),
        (a_result(not_possible={"grouped_mm": "not in this release"}), True),
        (a_result(not_possible={"grouped_mm": "RuntimeError: CUDA error: unspecified launch failure"}), False),
        (a_result(started=None), False),
        (a_result(started="yesterday"), False),
        (a_result(stages={}), False),
        (a_result(cell("lora", unmanaged=True)), False),
        (a_result(cell("lora", fault="b-packing")), False),
    ],
)
def test_only_what_would_happen_again_is_worth_keeping(tmp_path: Path, result: Any, worth: bool) -> None:
    assert worth_keeping(result) == worth
    assert ResultCache(tmp_path).keep(result, KEY, log=b"", warn=pytest.fail) == worth
    assert entry_of(tmp_path, KEY).exists() == worth


def test_planted_faults_are_kept_apart_and_only_where_asked(tmp_path: Path) -> None:
    planted = cell("lora", fault="b-packing")
    assert ResultCache(tmp_path, planted=True).keep(a_result(planted), KEY, log=b"", warn=pytest.fail)

    assert ResultCache(tmp_path, planted=True).find(planted, KEY, warn=pytest.fail) is not None
    assert ResultCache(tmp_path).find(planted, KEY, warn=pytest.fail) is None


def _changed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    entry = json.loads(path.read_text())
    change(entry)
    path.write_text(json.dumps(entry))


def _resealed(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Edit the result and give the entry the hash that fits."""
    from harness.execution.result_cache import _sha256  # noqa: PLC0415

    _changed(path, lambda entry: (change(entry["result"]), entry.update(sha256=_sha256(entry["result"]))))


HOSTILE: dict[str, Callable[[Path], object]] = {
    "empty": lambda path: path.write_bytes(b""),
    "truncated": lambda path: path.write_bytes(path.read_bytes()[:500]),
    "binary": lambda path: path.write_bytes(bytes(range(256)) * 10),
    "no object": lambda path: path.write_text("[]"),
    "nested": lambda path: path.write_text("[" * 100_000),
    "large number": lambda path: _changed(path, lambda entry: entry.update(schema=10**400)),
    "another schema": lambda path: _changed(path, lambda entry: entry.update(schema=2)),
    "another key": lambda path: _changed(path, lambda entry: entry.update(key="0" * 64)),
    "edited": lambda path: _changed(path, lambda entry: entry["result"].update(outcome="fail")),
    "no result": lambda path: _changed(path, lambda entry: entry.pop("result")),
    "no hash": lambda path: _changed(path, lambda entry: entry.pop("sha256")),
    "another shape": lambda path: _resealed(path, lambda result: result.update(stages=[])),
    "unknown field": lambda path: _resealed(path, lambda result: result.update(verdict="fine")),
    "another cell": lambda path: _resealed(
        path,
        lambda result: (result["cell"].update(seed=3), result.update(cell_id=f"{result['cell_id']}+seed=3")),
    ),
    "not worth it": lambda path: _resealed(path, lambda result: result["stages"]["train"].update(result="crash")),
    "a folder": lambda path: (path.unlink(), path.mkdir()),
    "a pipe": lambda path: (path.unlink(), os.mkfifo(path)),
    "a loop": lambda path: (path.unlink(), path.symlink_to(path)),
}


@pytest.mark.parametrize("name", HOSTILE)
def test_an_entry_that_is_not_what_it_should_be_is_ignored_with_a_warning(tmp_path: Path, name: str) -> None:
    path = kept(tmp_path)
    HOSTILE[name](path)
    said: list[str] = []

    assert ResultCache(tmp_path).find(cell("lora"), KEY, warn=said.append) is None
    assert len(said) == 1
    assert said[0].startswith(f"{cell('lora').id}: the kept result {path}")
    assert said[0].encode()


def test_half_an_entry_is_none_and_nobody_is_told(tmp_path: Path) -> None:
    """A copy from another machine that is under way, or an entry that is just being removed."""
    kept(tmp_path).with_suffix(".log").unlink()

    assert ResultCache(tmp_path).find(cell("lora"), KEY, warn=pytest.fail) is None


def test_a_cache_that_cannot_be_written_is_said_and_ends_nothing(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    said: list[str] = []

    assert not ResultCache(tmp_path / "file").keep(a_result(), KEY, log=b"", warn=said.append)
    assert "not kept for later runs" in said[0]
    assert ResultCache(tmp_path / "file").find(cell("lora"), KEY, warn=said.append) is None
    assert not ResultCache(tmp_path).keep(a_result(), KEY, log=None, warn=pytest.fail), "its log could not be read"


def test_copying_two_folders_together_merges_them(tmp_path: Path) -> None:
    other = fingerprints().of(cell("lora"), "another") or ""
    kept(tmp_path / "one")
    kept(tmp_path / "two", other)
    kept(tmp_path / "two", started="2026-11-26T10:00:00+00:00")
    subprocess.run(["cp", "-r", f"{tmp_path}/two/.", tmp_path / "one"], check=True)
    found = [ResultCache(tmp_path / "one").find(cell("lora"), key, warn=pytest.fail) for key in (KEY, other)]

    assert all(found)
    assert len(kept_results(tmp_path / "one")) == 2


def test_the_least_recently_used_make_room(tmp_path: Path) -> None:
    keys = [f"{number:064x}" for number in range(10)]
    for number, key in enumerate(keys):
        path = kept(tmp_path, key)
        for file in (path, path.with_suffix(".log")):
            os.utime(file, (number, number))
    assert ResultCache(tmp_path).find(cell("lora"), keys[0], warn=pytest.fail), "it is used now"
    each = kept_results(tmp_path)[0].size
    abandoned, fresh = tmp_path / "00" / ".x-1.tmp", tmp_path / "00" / ".x-2.tmp"
    for file in (abandoned, fresh):
        file.write_text("half")
    os.utime(abandoned, (0, 0))

    assert make_room(tmp_path, 10 * each) == []
    removed = make_room(tmp_path, 9 * each)
    assert [entry.path.stem for entry in removed] == keys[1:4], "down to four fifths, the oldest first"
    assert {entry.path.stem for entry in kept_results(tmp_path)} == {keys[0], *keys[4:]}
    assert not list(tmp_path.rglob(f"{keys[1]}*"))
    assert not abandoned.exists()
    assert fresh.exists()
    assert make_room(tmp_path / "absent", 0) == []


def test_a_log_alone_takes_room_and_is_no_result(tmp_path: Path) -> None:
    kept(tmp_path).unlink()
    (alone,) = kept_results(tmp_path)

    assert (alone.whole, alone.size) == (False, 4)
    assert make_room(tmp_path, 0) == [alone]
    assert kept_results(tmp_path) == []


def test_results_are_forgotten_by_age_or_all(tmp_path: Path) -> None:
    old, new = kept(tmp_path, "0" * 64), kept(tmp_path, "1" * 64)
    long_ago = time.time() - 40 * 86400
    for file in (old, old.with_suffix(".log")):
        os.utime(file, (long_ago, long_ago))

    assert [entry.path for entry in forget_results(tmp_path, older_than_days=30)] == [old]
    assert [entry.path for entry in forget_results(tmp_path)] == [new]
    assert not [path for path in tmp_path.rglob("*") if path.is_file()]


@pytest.mark.parametrize("ending", [".json", ".log"])
@pytest.mark.parametrize("forget", [forget_results, lambda root: make_room(root, 0)])
def test_a_folder_where_a_file_should_be_stops_nothing(
    tmp_path: Path, ending: str, forget: Callable[[Path], object]
) -> None:
    strange, usual = kept(tmp_path, "0" * 64).with_suffix(ending), kept(tmp_path, "1" * 64)
    strange.unlink()
    strange.mkdir()
    (strange / "inside").write_text("x")
    assert sum(entry.whole for entry in kept_results(tmp_path)) == (1 if ending == ".json" else 2)

    forget(tmp_path)

    assert not strange.exists()
    assert not usual.exists()
    assert kept_results(tmp_path) == []


@pytest.mark.parametrize(
    ("text", "size"),
    [
        ("", 2 * 2**30), ("0", 0), ("0.0", 0), ("0.4 GiB", 429496729), ("512B", 512), ("500 MiB", 500 * 2**20),
        ("1.5G", 3 * 2**29), ("10kb", 10240), (" 1T ", 2**40),
    ],
)  # fmt: skip
def test_the_room_is_what_the_variable_says(text: str, size: int) -> None:
    assert results_room({"MOE_LORA_HARNESS_RESULTS_SIZE": text}) == size


@pytest.mark.parametrize("text", ["0.4", "2", "1.5 "])
def test_a_room_without_a_unit_is_refused(text: str) -> None:
    """It would be bytes, and 0.4 of them none: no result would be kept, and nobody told."""
    with pytest.raises(ConfigurationError, match="has no unit") as caught:
        results_room({"MOE_LORA_HARNESS_RESULTS_SIZE": text})
    assert f"{text.strip()} GiB" in str(caught.value.remedy)


@pytest.mark.parametrize("text", ["much", "-1", "1 2", "1e9", "1 GBs"])
def test_a_room_that_is_no_size_is_refused(text: str) -> None:
    with pytest.raises(ConfigurationError, match="no size"):
        results_room({"MOE_LORA_HARNESS_RESULTS_SIZE": text})


PROGRAM = """
import sys
from pathlib import Path
sys.path[:0] = {paths!r}
from execution_helpers import cell
from reuse_samples import a_result
from harness.execution.result_cache import ResultCache
from harness.execution.result_room import make_room

me, root = int(sys.argv[1]), Path(sys.argv[2])
said = []
cache = ResultCache(root)
sys.stdin.readline()
found = 0
for turn in range(40):
    for number in range(5):
        key = f"{{number:064x}}"
        kept = cache.find(cell("lora"), key, warn=said.append)
        if kept is not None:
            found += 1
            assert kept.result.threads in (1, 2), kept.result.threads
            assert kept.log in (b"1" * 100_000, b"2" * 100_000)
        cache.keep(a_result(threads=me), key, log=str(me).encode() * 100_000, warn=said.append)
    make_room(root, 300_000)
print(found, said)
"""


def test_two_processes_share_a_cache_while_room_is_made(tmp_path: Path) -> None:
    """Both write the same keys again and again, read what the other wrote and remove it: nothing is ever spoilt."""
    paths = [path for path in sys.path if path]
    program = PROGRAM.format(paths=paths)
    pipe = subprocess.PIPE
    processes = [
        subprocess.Popen([sys.executable, "-c", program, str(me), tmp_path], stdin=pipe, stdout=pipe, text=True)
        for me in (1, 2)
    ]
    for process in processes:
        assert process.stdin is not None
        process.stdin.write("go\n")
        process.stdin.flush()
    outputs = [process.communicate(timeout=120)[0].strip() for process in processes]

    assert [process.returncode for process in processes] == [0, 0], outputs
    assert all(output.endswith(" []") for output in outputs), outputs
    assert sum(int(output.split()[0]) for output in outputs) > 0
    assert not list(tmp_path.rglob("*.tmp"))
