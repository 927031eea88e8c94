"""The page cache, and measured processes: what they say, how they fail, what they can see."""

from __future__ import annotations

import ast
import os
import sys
from pathlib import Path

import pytest

from harness.bench.cache_state import cached_share, files_below, prepare
from harness.bench.machine import describe
from harness.bench.process import MeasurementError, Ran, copy_code, run_measured
from harness.bench.programs.reads import Reads

SLOW = """
import time
def load():
    return {"slow": "1"}
def run(request):
    print("a library talks")
    kept = bytearray(request["bytes"])
    for start in range(0, len(kept), 4096):
        kept[start] = 1
    time.sleep(request["seconds"])
    if request.get("fail"):
        raise ValueError("on purpose")
    return {"size": len(kept)}
"""


@pytest.fixture
def code(tmp_path: Path) -> Path:
    """The code of measured processes, with a program of three lines in it."""
    copy_code(tmp_path / "code")
    (tmp_path / "code" / "harness" / "bench" / "programs" / "slow.py").write_text(SLOW)
    return tmp_path / "code"


def _run(code: Path, before: list[str], **request: object) -> Ran:
    return run_measured(
        Path(sys.executable),
        code,
        "harness.bench.programs.slow",
        {"seconds": 0.2, "bytes": 64 << 20, **request},
        environment=os.environ,
        folder=code.parent,
        log=code.parent / "log",
        before=lambda: before.append("called"),
        limit=30,
    )


def test_a_measured_process(code: Path) -> None:
    before: list[str] = []
    ran = _run(code, before)

    assert before == ["called"]
    assert ran.found == {"size": 64 << 20}
    assert ran.versions == {"slow": "1"}
    assert 0.2 <= ran.seconds <= ran.process_seconds
    assert 60 << 20 < ran.rss_above < 90 << 20
    assert "a library talks" in (code.parent / "log").read_text()


def test_a_process_that_fails_gives_its_reason(code: Path) -> None:
    with pytest.raises(MeasurementError, match="ValueError: on purpose"):
        _run(code, [], fail=True)


def test_a_program_that_is_not_there(code: Path) -> None:
    (code / "harness" / "bench" / "programs" / "slow.py").unlink()
    with pytest.raises(MeasurementError, match="ModuleNotFoundError"):
        _run(code, [])


def test_a_process_that_does_not_end_is_ended(code: Path) -> None:
    with pytest.raises(MeasurementError, match=r"no end after 0\.1 s"):
        run_measured(
            Path(sys.executable),
            code,
            "harness.bench.programs.slow",
            {"seconds": 60, "bytes": 1},
            environment=os.environ,
            folder=code.parent,
            log=code.parent / "log",
            before=lambda: None,
            limit=0.1,
        )


def test_the_code_that_is_measured_is_a_copy_that_has_a_name(tmp_path: Path) -> None:
    first, second = copy_code(tmp_path / "one"), copy_code(tmp_path / "two")

    assert first == second
    assert (tmp_path / "one" / "harness" / "merge" / "run" / "engine.py").is_file()
    assert not (tmp_path / "one" / "harness" / "cli").exists()


def test_files_become_warm_and_cold(tmp_path: Path) -> None:
    (tmp_path / "folder").mkdir()
    (tmp_path / "folder" / "a").write_bytes(os.urandom(1 << 20))
    (tmp_path / "b").write_bytes(b"")
    files = files_below(tmp_path)

    assert [path.name for path in files] == ["b", "a"]
    prepare("warm", files)
    assert cached_share(files) == 1.0
    prepare("cold", files)
    in_memory = describe(tmp_path)["file_system"] in {"tmpfs", "ramfs"}  # which have nothing to drop to
    assert cached_share(files) == (1.0 if in_memory else 0.0)


def test_reads_of_tensors_are_counted_and_headers_are_not(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "base").mkdir()
    inside, outside = tmp_path / "base" / "m.safetensors", tmp_path / "other.safetensors"
    for path in (inside, outside):
        path.write_bytes((16).to_bytes(8, "little") + b" " * 16 + b"x" * 1000)
    for name in ("pread", "preadv", "read", "readv"):
        monkeypatch.setattr(os, name, getattr(os, name))
    monkeypatch.setattr("mmap.mmap", __import__("mmap").mmap)
    reads = Reads(tmp_path / "base")
    reads.wrap()
    descriptor, other = os.open(inside, os.O_RDONLY), os.open(outside, os.O_RDONLY)

    assert os.pread(descriptor, 24, 0) == (16).to_bytes(8, "little") + b" " * 16
    assert reads.count == 0
    os.pread(descriptor, 100, 0)
    assert reads.count == 76
    os.preadv(descriptor, [bytearray(50), bytearray(50)], 924)
    assert reads.count == 176
    os.lseek(descriptor, 1000, os.SEEK_SET)
    os.read(descriptor, 500)
    assert reads.count == 200
    os.pread(other, 1000, 0)
    assert reads.count == 200
    for item in (descriptor, other):
        os.close(item)


def test_all_of_ours_that_a_measured_process_may_import_is_copied(tmp_path: Path) -> None:
    """A package that a cell came to need was missing here, and a run of forty minutes ended over it."""
    copy_code(tmp_path)
    there = {path.relative_to(tmp_path).as_posix() for path in tmp_path.rglob("*.py")}
    asked = {
        node.module
        for path in tmp_path.rglob("*.py")
        if "bench" not in path.relative_to(tmp_path).parts or "programs" in path.parts
        for node in ast.walk(ast.parse(path.read_text()))
        if isinstance(node, ast.ImportFrom) and str(node.module).startswith("harness.")
    }

    assert len(asked) > 50
    assert [
        module
        for module in sorted(map(str, asked))
        if f"{module.replace('.', '/')}.py" not in there and f"{module.replace('.', '/')}/__init__.py" not in there
    ] == []
