"""Cache folder, guards, listing and cleaning, on pretended environments."""

import json
import os
import sys
import time
from pathlib import Path

import pytest

from harness.envs.cache import cache_dir, clean_environments, list_environments
from harness.envs.guard import exclusively, hold_shared, open_guard, try_exclusively
from harness.envs.layout import CacheLayout, write_atomically
from harness.envs.venv import MARKER, read_record
from harness.errors import EnvironmentFailedError, UnknownNameError

RECORD = {
    "key": "aa11",
    "label": "tf5.5.0-peft0.19.1-trl0.25.1",
    "requirements": ["six==1.17.0"],
    "lock_sha256": "0" * 64,
    "python_version": "3.11.2",
    "platform": "p",
    "torch": None,
    "versions": {"six": "1.17.0"},
    "created": "2026-11-01T00:00:00+00:00",
    "seconds_install": 1.0,
}


def pretend(root: Path, key: str, *, complete: bool = True, days_ago: float = 0) -> Path:
    prefix = CacheLayout(root).environments / key
    (prefix / "bin").mkdir(parents=True)
    (prefix / "bin" / "python").symlink_to(sys.executable)
    (prefix / "payload").write_bytes(b"x" * 10_000)
    if complete:
        marker = prefix / MARKER
        marker.write_text(json.dumps(RECORD | {"key": key}), encoding="utf-8")
        when = time.time() - days_ago * 86400
        os.utime(marker, (when, when))
    return prefix


def test_the_cache_folder_can_be_named(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setenv("MOE_LORA_HARNESS_CACHE", str(tmp_path / "named"))
    assert cache_dir() == tmp_path / "named"

    monkeypatch.delenv("MOE_LORA_HARNESS_CACHE")
    assert cache_dir().name == "moe-lora-harness"


def test_no_cache_lists_nothing(tmp_path: Path) -> None:
    assert list_environments(tmp_path / "absent") == []
    assert clean_environments(root=tmp_path / "absent") == []


def test_a_marker_makes_an_environment_complete(tmp_path: Path) -> None:
    whole, half = pretend(tmp_path, "aa11", days_ago=3), pretend(tmp_path, "bb22", complete=False)

    first, second = list_environments(tmp_path)

    assert (first.path, first.complete, first.stack) == (whole, True, "tf5.5.0-peft0.19.1-trl0.25.1")
    assert (second.path, second.complete, second.stack) == (half, False, None)
    assert first.last_used == pytest.approx(time.time() - 3 * 86400, abs=60)
    assert first.apparent_bytes > 10_000
    assert not first.in_use


def test_shared_files_are_not_counted_as_freed(tmp_path: Path) -> None:
    prefix = pretend(tmp_path, "aa11")
    before = list_environments(tmp_path)[0]
    (tmp_path / "elsewhere").hardlink_to(prefix / "payload")
    after = list_environments(tmp_path)[0]

    assert before.apparent_bytes == after.apparent_bytes
    assert before.real_bytes - after.real_bytes >= 10_000


@pytest.mark.parametrize("damage", ["", "{", "[]", '{"key": "aa11"}', "null"])
def test_a_damaged_marker_counts_as_none(tmp_path: Path, damage: str) -> None:
    prefix = pretend(tmp_path, "aa11")
    (prefix / MARKER).write_text(damage, encoding="utf-8")

    assert read_record(prefix) is None


def test_an_environment_whose_python_is_gone_is_not_complete(tmp_path: Path) -> None:
    prefix = pretend(tmp_path, "aa11")
    assert read_record(prefix) is not None
    (prefix / "bin" / "python").unlink()
    (prefix / "bin" / "python").symlink_to(tmp_path / "gone")

    assert read_record(prefix) is None


def test_cleaning_by_age_id_and_all(tmp_path: Path) -> None:
    old, new, half = (
        pretend(tmp_path, "aa11", days_ago=40),
        pretend(tmp_path, "aabb"),
        pretend(tmp_path, "cc33", complete=False),
    )

    assert [item.path for item in clean_environments(older_than_days=30, root=tmp_path)] == [old]
    assert not old.exists()
    assert [item.path for item in clean_environments(["aab"], root=tmp_path)] == [new]
    assert [item.path for item in clean_environments(root=tmp_path)] == [half]
    assert list_environments(tmp_path) == []


def test_an_unknown_or_ambiguous_id_removes_nothing(tmp_path: Path) -> None:
    pretend(tmp_path, "aa11")
    pretend(tmp_path, "aa22")

    for wanted in ("zz", "aa"):
        with pytest.raises(UnknownNameError):
            clean_environments(["aa11", wanted], root=tmp_path)

    assert len(list_environments(tmp_path)) == 2


def test_one_in_use_stays_and_is_said_to(tmp_path: Path) -> None:
    prefix = pretend(tmp_path, "aa11")
    descriptor = open_guard(CacheLayout(tmp_path).guard("environment-aa11"))
    hold_shared(descriptor)
    said: list[str] = []

    assert list_environments(tmp_path)[0].in_use
    assert clean_environments(root=tmp_path, log=said.append) == []
    assert prefix.exists()
    assert "in use" in said[0]
    os.close(descriptor)
    assert len(clean_environments(root=tmp_path)) == 1


def test_locks_are_forgotten_when_asked(tmp_path: Path) -> None:
    layout = CacheLayout(tmp_path)
    write_atomically(layout.locks / "k.txt", "six==1")
    write_atomically(layout.known_versions / "d.json", "[]")

    clean_environments(root=tmp_path)
    assert (layout.locks / "k.txt").exists()
    (layout.locks / "strange.txt" / "inside").mkdir(parents=True)
    being_written = layout.locks / ".k.txt.0123"
    being_written.write_text("six", encoding="utf-8")
    clean_environments(locks=True, root=tmp_path)
    assert list(layout.locks.iterdir()) + list(layout.known_versions.iterdir()) == [being_written]


def test_a_guard_is_shared_by_users_and_exclusive_to_makers(tmp_path: Path) -> None:
    one, two = open_guard(tmp_path / "g" / "x"), open_guard(tmp_path / "g" / "x")
    hold_shared(one)
    hold_shared(two)
    assert not try_exclusively(one)
    os.close(two)
    assert try_exclusively(one)
    os.close(one)
    waited: list[bool] = []
    with exclusively(tmp_path / "g" / "x", waiting=lambda: waited.append(True)):
        pass

    assert waited == []


def test_a_cache_that_cannot_be_written_is_an_environment_error(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("", encoding="utf-8")

    with pytest.raises(EnvironmentFailedError, match="cannot be written"):
        open_guard(tmp_path / "file" / "x")
    with pytest.raises(EnvironmentFailedError, match="cannot be written"):
        write_atomically(tmp_path / "file" / "x", "")
