"""From requirements to a lock: the versions exist, torch is the right build, uv agrees.

A lock is remembered under a key of everything that can change it.
"""

from __future__ import annotations

import json
from collections.abc import Sequence
from datetime import date

from packaging.requirements import Requirement
from packaging.utils import canonicalize_name
from packaging.version import Version

from harness.contract.cell_fields import Device
from harness.envs.guard import exclusively
from harness.envs.interpreter import Interpreter
from harness.envs.layout import CacheLayout, write_atomically
from harness.envs.lock import Lock, compile_requirements, lock_key, locked_versions, without_sources
from harness.envs.torch_build import choose_torch, exact_torch
from harness.envs.uv_command import Uv
from harness.envs.versions import missing_pins, pinned_version, raise_for_missing


def resolve(
    uv: Uv,
    layout: CacheLayout,
    requirements: Sequence[str],
    interpreter: Interpreter,
    *,
    device: Device = "cpu",
    refresh: bool = False,
    marks: Sequence[str] = (),
    before: date | None = None,
) -> Lock:
    """Return the lock of ``requirements``, from the cache when it has been made before.

    Args:
        uv: runs uv.
        layout: the cache.
        requirements: exact pins, mostly; what they leave open uv decides.
        interpreter: the one it must fit.
        device: which build of torch, if the requirements come to one.
        refresh: make it again even if the cache has it.
        marks: what decides the lock and stands in no requirement (``Stack.marks``).
        before: nothing that was uploaded after this day is taken.

    Raises:
        VersionNotFoundError: a pinned version that no index has.
        Unresolvable: existing versions contradict each other.
        EnvironmentFailedError: anything that is not the requirements' fault.
    """
    key = lock_key(
        requirements,
        interpreter_tag=interpreter.tag,
        uv_version=uv.version,
        indexes_digest=uv.indexes.digest,
        device=device,
        marks=marks,
    )
    with exclusively(
        layout.guard(f"lock-{key}"), waiting=lambda: uv.log("another process is resolving the same stack")
    ):
        cached = None if refresh else read_lock(layout, key)
        if cached is not None:
            return cached
        raise_for_missing(missing_pins(uv, layout, requirements, interpreter))
        lock = _compile(uv, requirements, interpreter, device, before)
        # The lock's own file last: it is what a reader looks for first.
        write_atomically(layout.locks / f"{key}.json", json.dumps({"torch_backend": lock.torch_backend}))
        write_atomically(layout.locks / f"{key}.txt", lock.text)
    return lock


def read_lock(layout: CacheLayout, key: str) -> Lock | None:
    """Return the cached lock with that key, or None when there is none that can be used."""
    try:
        text = (layout.locks / f"{key}.txt").read_text(encoding="utf-8")
        backend = json.loads((layout.locks / f"{key}.json").read_text(encoding="utf-8"))["torch_backend"]
    except (FileNotFoundError, ValueError, KeyError):
        return None  # half-written by a machine that lost power: made again
    return Lock(text=text, torch_backend=backend, reused=True) if text else None


def _compile(
    uv: Uv, requirements: Sequence[str], interpreter: Interpreter, device: Device, before: date | None
) -> Lock:
    pinned: dict[str, str] = {canonicalize_name(Requirement(text).name): text for text in requirements}
    version = pinned_version(pinned["torch"]) if "torch" in pinned else None
    if version is None:
        text = without_sources(compile_requirements(uv, requirements, interpreter.python, before=before))
        found = locked_versions(text).get("torch")
        if found is None:
            return Lock(text=text, torch_backend=None, reused=False)
        version = Version(found).public  # what uv chose freely, in the build that is wanted
    choice = choose_torch(uv, version, interpreter, device)
    pinned["torch"] = choice.requirement
    text = without_sources(
        compile_requirements(uv, list(pinned.values()), interpreter.python, torch_backend=choice.backend, before=before)
    )
    return Lock(text=exact_torch(text) if device == "cuda" else text, torch_backend=choice.backend, reused=False)
