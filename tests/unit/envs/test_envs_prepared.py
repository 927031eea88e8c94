"""Which environments are there, in a cache that was written by hand."""

from __future__ import annotations

import json
import sys
from pathlib import Path

from harness.envs.interpreter import find_interpreter
from harness.envs.layout import CacheLayout
from harness.envs.lock import Lock, lock_key
from harness.envs.prepared import prepared_environments
from harness.envs.uv_command import find_uv
from harness.envs.venv import MARKER, environment_key
from harness.matrix.cell import Stack

STACK = Stack(transformers="5.5.0", peft="0.19.1", trl="0.25.1", pins={"torch": "2.13.0"})


def pretend(root: Path, stack: Stack, *, seconds: float, complete: bool = True) -> None:
    layout = CacheLayout(root)
    uv = find_uv(layout.working_folder)
    interpreter = find_interpreter(uv, None)
    lock = Lock(text=f"peft=={stack.peft}\n", torch_backend=None, reused=False)
    key = lock_key(
        stack.requirements, interpreter_tag=interpreter.tag, uv_version=uv.version,
        indexes_digest=uv.indexes.digest, device="cpu", marks=stack.marks,
    )  # fmt: skip
    layout.locks.mkdir(exist_ok=True)
    (layout.locks / f"{key}.txt").write_text(lock.text, encoding="utf-8")
    (layout.locks / f"{key}.json").write_text('{"torch_backend": null}', encoding="utf-8")
    folder = layout.environments / environment_key(lock, interpreter)
    (folder / "bin").mkdir(parents=True)
    (folder / "bin" / "python").symlink_to(sys.executable)
    record = {
        "key": folder.name, "label": stack.id, "requirements": [], "lock_sha256": lock.sha256, "python_version": "3",
        "platform": "p", "torch": "cpu", "versions": {}, "created": "2026-11-01T00:00:00+00:00",
        "seconds_install": seconds,
    }  # fmt: skip
    if complete:
        (folder / MARKER).write_text(json.dumps(record), encoding="utf-8")


def test_an_environment_is_there_when_its_lock_and_its_marker_are(tmp_path: Path) -> None:
    half, absent = (STACK.model_copy(update={"peft": version}) for version in ("0.20.0", "0.21.2"))
    otherwise = STACK.model_copy(update={"pins": {"torch": "2.12.0"}})
    pretend(tmp_path, STACK, seconds=4.0)
    pretend(tmp_path, half, seconds=100.0, complete=False)
    found = prepared_environments([STACK, half, absent, otherwise], root=tmp_path)

    assert [found.has(stack) for stack in (STACK, half, absent, otherwise)] == [True, False, False, False]
    assert found.seconds_each == 4.0
    assert found.identities.keys() == {STACK.key, half.key}, "whose locks are known"
    assert found.identities[STACK.key] != found.identities[half.key]
    assert prepared_environments([STACK.model_copy(update={"python": "3.99"})], root=tmp_path).there == frozenset()


def test_an_empty_cache_holds_nothing(tmp_path: Path) -> None:
    found = prepared_environments([STACK], root=tmp_path)

    assert (found.there, found.seconds_each) == (frozenset(), None)
