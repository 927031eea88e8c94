"""Directories of runs: held while the run lives, gone afterwards, and swept when a run could not."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path
from types import SimpleNamespace

import pytest

from harness.errors import EnvironmentFailedError
from harness.execution.scratch import GRACE, PREFIX, remove_abandoned, scratch_directory


def _old(path: Path) -> Path:
    stamp = path.stat().st_mtime - 2 * GRACE
    os.utime(path, (stamp, stamp))
    return path


def test_a_run_s_directory_goes_with_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    with scratch_directory() as scratch:
        (scratch / "cell").mkdir()
        assert scratch.parent == tmp_path

    assert list(tmp_path.iterdir()) == []


def test_what_a_killed_run_left_is_removed(tmp_path: Path) -> None:
    code = (
        "import os, signal, sys, tempfile; tempfile.tempdir = sys.argv[1]\n"
        "from harness.execution.scratch import scratch_directory\n"
        "with scratch_directory() as scratch:\n"
        "    (scratch / 'model').write_bytes(b'x' * 100)\n"
        "    os.kill(os.getpid(), signal.SIGKILL)\n"
    )
    subprocess.run([sys.executable, "-c", code, str(tmp_path)], check=False)
    [left] = tmp_path.iterdir()

    assert remove_abandoned(tmp_path) == [], "too young to be told from one that is about to be held"
    assert remove_abandoned(_old(left).parent) == [left]
    assert list(tmp_path.iterdir()) == []


def test_what_cannot_be_removed_stops_no_run(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    stubborn, other = tmp_path / f"{PREFIX}a", tmp_path / f"{PREFIX}b"
    for path in (stubborn, other):
        path.mkdir()
        _old(path)
    real = shutil.rmtree

    def refuse(path: Path) -> None:
        if path == stubborn:
            raise PermissionError(13, "Permission denied", str(path))
        real(path)

    monkeypatch.setattr("harness.execution.scratch.shutil", SimpleNamespace(rmtree=refuse))
    with scratch_directory() as scratch:
        assert scratch.is_dir()
    assert list(tmp_path.iterdir()) == [stubborn]


def test_a_run_that_has_no_room_says_so(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path / "gone"))
    with (
        pytest.raises(
            EnvironmentFailedError, match=r"the run's directory cannot be written: No such file or directory"
        ),
        scratch_directory(),
    ):
        pass


def test_a_living_run_and_what_is_not_ours_are_left_alone(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    other = tmp_path / "somebody-else"
    other.mkdir()
    (tmp_path / f"{PREFIX}link").symlink_to(other)
    with scratch_directory() as scratch:
        _old(scratch)

        assert remove_abandoned(tmp_path) == []
        assert scratch.exists()
    assert other.exists()
