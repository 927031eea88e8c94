"""The door: from a stack to an interpreter in which it is installed, made now or found again, or the user's own."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from packaging.utils import canonicalize_name

from harness.contract.cell_fields import Device
from harness.envs.existing import existing_record, use_existing
from harness.envs.interpreter import describe, find_interpreter
from harness.envs.layout import CacheLayout, cache_dir
from harness.envs.lock import Lock
from harness.envs.resolution import resolve
from harness.envs.uv_command import find_uv
from harness.envs.venv import LinkMode, Record, StaleLockError, ensure_venv, environment_identity, hold
from harness.errors import EnvironmentFailedError, VersionNotFoundError
from harness.matrix.cell import Stack
from harness.matrix.sources import Source


@dataclass(frozen=True, kw_only=True)
class Environment:
    """An interpreter that a cell can run in.

    Attributes:
        python: its executable.
        prefix: its folder.
        lock_sha256: hex digest of the lock it was installed from; None for an interpreter that the user gave.
        identity: hex digest of all that it holds (``venv.environment_identity``); None where the lock is.
        versions: installed distributions, canonical name to version, local labels included (``2.13.0+cpu``).
        python_version: as ``3.11.2``.
        reused: whether it was there already.
        seconds_resolve: time spent on the lock; next to nothing when it was cached.
        seconds_install: time spent making the environment; next to nothing when it was there.
        note: what a user should know of it, as that the indexes could not be asked; None without.
    """

    python: Path
    prefix: Path
    lock_sha256: str | None
    identity: str | None
    versions: dict[str, str]
    python_version: str
    reused: bool
    seconds_resolve: float
    seconds_install: float
    note: str | None = None


def ensure_environment(
    stack: Stack, *, device: Device = "cpu", log: Callable[[str], None] | None = None, link_mode: LinkMode = "hardlink"
) -> Environment:
    """Return an environment in which ``stack`` is installed.

    Where the indexes cannot be asked, or no longer offer it, one that was made before is used and ``note`` says so.

    Args:
        stack: what to install.
        device: which build of torch.
        log: receives every external command, redacted, before it runs.
        link_mode: ``copy`` for an environment whose files may be edited.

    Raises:
        Unresolvable: the pinned versions exist and contradict each other.
        VersionNotFoundError: a pinned version that no configured index has.
        EnvironmentFailedError: an index out of reach, a full disk, no such Python, no torch of the right build.
    """
    return ensure_requirements(
        stack.requirements,
        label=stack.id,
        python_version=stack.python,
        device=device,
        link_mode=link_mode,
        log=log,
        sources=stack.sources,
        marks=stack.marks,
        before=stack.as_of if stack.resolution.startswith("era") else None,
    )


def ensure_requirements(
    requirements: Sequence[str],
    *,
    label: str,
    python_version: str | None = None,
    device: Device = "cpu",
    link_mode: LinkMode = "hardlink",
    log: Callable[[str], None] | None = None,
    root: Path | None = None,
    sources: Mapping[str, Source] | None = None,
    marks: Sequence[str] = (),
    before: date | None = None,
) -> Environment:
    """Return an environment in which ``requirements`` are installed; see :func:`ensure_environment`.

    Args:
        requirements: as in a requirements file, by name (no addresses).
        label: what the environment is called in lists.
        python_version: ``major.minor``, or None for the running interpreter's.
        device: which build of torch, if they come to one.
        link_mode: ``hardlink`` or ``copy``.
        log: receives every external command before it runs.
        root: another cache than the user's.
        sources: which of the requirements no index has, and what they are built from.
        marks: what decides the lock and stands in no requirement (``Stack.marks``).
        before: nothing that was uploaded after this day is taken.
    """
    layout = CacheLayout(cache_dir() if root is None else root)
    uv = find_uv(layout.working_folder, log)
    for decision in uv.indexes.decisions:
        uv.log(f"indexes: {decision}")
    interpreter = find_interpreter(uv, python_version)
    started = time.monotonic()
    try:
        lock = resolve(uv, layout, requirements, interpreter, device=device, marks=marks, before=before)
    except (EnvironmentFailedError, VersionNotFoundError) as error:
        there = existing_record(layout, requirements, interpreter, device=device, marks=marks, sources=sources)
        prefix = use_existing(layout, there) if there is not None else None
        if there is None or prefix is None:
            raise
        note = f"{label}: the environment of {there.created} is used; what it would hold today cannot be asked"
        uv.log(f"{note}: {error.message}")
        seconds = round(time.monotonic() - started, 3)
        return _environment(prefix, there, sources, reused=True, resolve=seconds, install=0.0, note=note)
    resolved = time.monotonic()

    def install(lock: Lock) -> tuple[Path, Record, bool]:
        return ensure_venv(
            uv,
            layout,
            lock,
            interpreter,
            label=label,
            requirements=tuple(sorted(requirements)),
            device=device,
            link_mode=link_mode,
            sources=sources,
            marks=tuple(marks),
        )

    try:
        prefix, record, reused = install(lock)
    except StaleLockError as error:
        if not lock.reused:
            raise
        # An index may have changed since the lock was made; one that is made now settles whether that was it.
        uv.log(f"the cached lock does not install ({error.message}); resolving again")
        lock = resolve(uv, layout, requirements, interpreter, device=device, refresh=True, marks=marks, before=before)
        resolved = time.monotonic()
        prefix, record, reused = install(lock)
    return _environment(
        prefix,
        record,
        sources,
        reused=reused,
        resolve=round(resolved - started, 3),
        install=round(time.monotonic() - resolved, 3),
    )


def _environment(
    prefix: Path,
    record: Record,
    sources: Mapping[str, Source] | None,
    *,
    reused: bool,
    resolve: float,
    install: float,
    note: str | None = None,
) -> Environment:
    return Environment(
        python=prefix / "bin" / "python",
        prefix=prefix,
        lock_sha256=record.lock_sha256,
        identity=environment_identity(record.lock_sha256, record.platform, sources),
        versions=record.versions,
        python_version=record.python_version,
        reused=reused,
        seconds_resolve=resolve,
        seconds_install=install,
        note=note,
    )


def unmanaged_environment(python: Path) -> Environment:
    """Return the environment of an interpreter that the user gave: observed, never changed.

    One of the cache's own counts as in use until this process ends.

    Raises:
        ConfigurationError: the path is no Python that runs.
    """
    told = describe(python.expanduser().absolute(), with_versions=True)
    layout = CacheLayout(cache_dir())
    if told.prefix.parent.resolve() == layout.environments.resolve():
        hold(layout, told.prefix)
    return Environment(
        python=told.python,
        prefix=told.prefix,
        lock_sha256=None,
        identity=None,
        versions={canonicalize_name(name): version for name, version in told.versions.items()},
        python_version=told.version,
        reused=True,
        seconds_resolve=0.0,
        seconds_install=0.0,
    )
