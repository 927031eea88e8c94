"""Environments on disk: content-addressed folders, complete or not there at all, shared by whoever needs the same one.

A folder's name is a hash of the lock, the interpreter and how torch was fetched. So another lock is another folder. A
folder counts only once its marker has been written. The marker holds the record, and is the last file to be written. A
folder without one is removed and made again. Making one is guarded against other processes. Whoever uses one holds its
guard as long as the process lives, so that cleaning can tell.

Packages are hard links into uv's cache by default: cheap, and leaky. Editing a file in one environment edits it in all.
Whatever patches files must ask for ``link_mode="copy"`` and gets a folder of its own.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import importlib.metadata
import json
import os
import shutil
import threading
import time
from collections.abc import Mapping
from dataclasses import asdict, dataclass
from datetime import UTC, datetime
from pathlib import Path
from typing import Literal

from packaging.utils import canonicalize_name

from harness.contract.cell_fields import Device
from harness.envs.guard import hold_exclusively, hold_shared, open_guard
from harness.envs.indexes import redact
from harness.envs.interpreter import Interpreter
from harness.envs.layout import CacheLayout, write_atomically
from harness.envs.lock import Lock
from harness.envs.torch_build import assert_torch_build
from harness.envs.uv_command import Unresolvable, Uv
from harness.errors import EnvironmentFailedError
from harness.matrix.sources import Source

MARKER = "harness-environment.json"
LinkMode = Literal["hardlink", "copy"]

_held: dict[Path, int] = {}
_held_lock = threading.Lock()


class StaleLockError(EnvironmentFailedError):
    """The indexes do not offer what the lock names, or not with those hashes: they have changed since it was made."""


@dataclass(frozen=True, kw_only=True)
class Record:
    """What the marker of a complete environment says.

    Attributes:
        key: the folder's name.
        label: the stack's id, or whatever the caller called it.
        requirements: what was asked for.
        lock_sha256: hex digest of the lock it was installed from.
        python_version: as ``3.11.2``.
        platform: the interpreter's tag.
        torch: which build of torch is in it, or None.
        versions: what is installed, canonical name to version.
        created: ISO 8601, UTC.
        seconds_install: how long it took.
        marks: what decided it and stands in no requirement.
    """

    key: str
    label: str
    requirements: tuple[str, ...]
    lock_sha256: str
    python_version: str
    platform: str
    torch: str | None
    versions: dict[str, str]
    created: str
    seconds_install: float
    marks: tuple[str, ...] = ()


def environment_key(
    lock: Lock, interpreter: Interpreter, link_mode: LinkMode = "hardlink", sources: Mapping[str, Source] | None = None
) -> str:
    """Return the folder name of the environment that a lock describes, see :func:`folder_name`."""
    return folder_name(lock.sha256, lock.torch_backend, interpreter, link_mode=link_mode, sources=sources)


def folder_name(
    lock_sha256: str,
    torch_backend: str | None,
    interpreter: Interpreter,
    *,
    link_mode: LinkMode = "hardlink",
    sources: Mapping[str, Source] | None = None,
) -> str:
    """Return the folder name of an environment: 24 hex digits over everything that makes it what it is."""
    built = [f"{name} {source.kind} {source.digest}" for name, source in sorted((sources or {}).items())]
    parts = [lock_sha256, interpreter.tag, str(interpreter.home), torch_backend, link_mode, *built]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()[:24]


def environment_identity(lock_sha256: str, interpreter_tag: str, sources: Mapping[str, Source] | None = None) -> str:
    """Return a hex digest of what an environment holds, wherever it lies and however its files got there.

    It is over the hashes of all that is installed, the interpreter that runs it, and what was built from sources. The
    build of torch is among the hashes. Two machines that agree on it have the same environment.
    """
    built = [f"{name} {source.kind} {source.digest}" for name, source in sorted((sources or {}).items())]
    return hashlib.sha256(json.dumps([lock_sha256, interpreter_tag, *built]).encode()).hexdigest()


def site_packages(prefix: Path, python_version: str) -> Path:
    """Return where an environment's packages lie (POSIX)."""
    major, minor = python_version.split(".")[:2]
    return prefix / "lib" / f"python{major}.{minor}" / "site-packages"


def read_record(prefix: Path) -> Record | None:
    """Return the record of the environment at ``prefix``, or None when it is not complete or its Python has gone."""
    try:
        told = json.loads((prefix / MARKER).read_text(encoding="utf-8"))
        lists = {name: tuple(told.get(name, ())) for name in ("requirements", "marks")}
        record = Record(**{**told, **lists})
    except (FileNotFoundError, NotADirectoryError, ValueError, TypeError, AttributeError):
        return None
    return record if os.access(prefix / "bin" / "python", os.X_OK) else None


def ensure_venv(
    uv: Uv,
    layout: CacheLayout,
    lock: Lock,
    interpreter: Interpreter,
    *,
    label: str,
    requirements: tuple[str, ...],
    device: Device = "cpu",
    link_mode: LinkMode = "hardlink",
    sources: Mapping[str, Source] | None = None,
    marks: tuple[str, ...] = (),
) -> tuple[Path, Record, bool]:
    """Return (prefix, record, reused) of the environment that the lock describes, made if it is not there.

    The environment counts as in use until this process ends or :func:`release` is called.

    Raises:
        EnvironmentFailedError: it could not be made; nothing half-made is left to be trusted.
    """
    key = environment_key(lock, interpreter, link_mode, sources)
    prefix = layout.environments / key
    descriptor = open_guard(layout.guard(f"environment-{key}"))
    reused = True
    try:
        while True:
            hold_shared(descriptor)
            record = read_record(prefix)
            if record is not None:
                os.utime(prefix / MARKER)  # its time stamp says when it was last used
                _keep(prefix, descriptor)
                return prefix, record, reused
            # Nobody holds a broken environment for use. Only this very process may, from when it was whole.
            fcntl.flock(descriptor, fcntl.LOCK_UN)
            release(prefix)
            hold_exclusively(
                descriptor, waiting=lambda: uv.log(f"another process is making environment {key}: waiting")
            )
            if read_record(prefix) is None:
                try:
                    _make(
                        uv,
                        prefix,
                        lock,
                        interpreter,
                        label=label,
                        requirements=requirements,
                        device=device,
                        link_mode=link_mode,
                        sources=sources or {},
                        marks=marks,
                    )
                except BaseException:
                    # Not needed for correctness (it has no marker), but a full disk is not helped by what is left over.
                    with contextlib.suppress(EnvironmentFailedError):
                        remove(prefix)
                    raise
                reused = False
    except BaseException:
        os.close(descriptor)
        raise


def hold(layout: CacheLayout, prefix: Path) -> Record | None:
    """Let the environment at ``prefix`` count as in use until this process ends; None where it is not complete."""
    descriptor = open_guard(layout.guard(f"environment-{prefix.name}"))
    try:
        hold_shared(descriptor)
        record = read_record(prefix)
        if record is not None:
            os.utime(prefix / MARKER)  # its time stamp says when it was last used
    except BaseException:
        os.close(descriptor)
        raise
    if record is None:
        os.close(descriptor)
    else:
        _keep(prefix, descriptor)
    return record


def release(prefix: Path) -> None:
    """Say that this process no longer uses the environment at ``prefix``."""
    with _held_lock:
        descriptor = _held.pop(prefix, None)
    if descriptor is not None:
        os.close(descriptor)


def _keep(prefix: Path, descriptor: int) -> None:
    with _held_lock:
        if prefix in _held:
            os.close(descriptor)  # one hold is enough
        else:
            _held[prefix] = descriptor


def _make(
    uv: Uv,
    prefix: Path,
    lock: Lock,
    interpreter: Interpreter,
    *,
    label: str,
    requirements: tuple[str, ...],
    device: Device,
    link_mode: LinkMode,
    sources: Mapping[str, Source],
    marks: tuple[str, ...],
) -> None:
    started = time.monotonic()
    remove(prefix)
    lock_file = uv.folder / f"{prefix.name}.txt"
    write_atomically(lock_file, lock.text)
    try:
        uv(["venv", str(prefix), "--python", str(interpreter.home), "--relocatable", "--no-project"])
        backend = [] if lock.torch_backend is None else ["--torch-backend", lock.torch_backend]
        options = ["--require-hashes", "--link-mode", link_mode, *backend]
        python = ["--python", str(prefix / "bin" / "python")]
        uv(["pip", "sync", str(lock_file), *python, *options])
        if sources:
            # What no index has is installed last: a lock of hashes cannot name it. By standard input: an address can
            # hold credentials.
            listed = "".join(f"{name} @ {source.location}\n" for name, source in sorted(sources.items()))
            uv(["pip", "install", "--no-deps", "--link-mode", link_mode, *python, "-r", "-"], stdin=listed)
    except Unresolvable as error:
        raise StaleLockError(
            f"What the lock names is not offered any more. uv says: {error.explanation}",
            remedy="Resolve again (`harness env clean --locks`), or check the index settings with `harness doctor`.",
        ) from error
    except EnvironmentFailedError as error:
        if "Hash mismatch" in error.message:
            raise StaleLockError(error.message, remedy=error.remedy) from error
        raise
    finally:
        lock_file.unlink(missing_ok=True)
    packages = site_packages(prefix, interpreter.version)
    versions = installed_versions(packages)
    _assert_locked(lock, versions)
    if absent := [name for name in sources if name not in versions]:
        raise EnvironmentFailedError(
            f"uv reported success, but the environment has no {', '.join(absent)}.",
            remedy="See that the source builds a package of that name.",
        )
    record = Record(
        key=prefix.name,
        label=label,
        requirements=tuple(map(redact, requirements)),
        lock_sha256=lock.sha256,
        python_version=interpreter.version,
        platform=interpreter.tag,
        torch=assert_torch_build(packages, device, where="the environment"),
        versions=versions,
        created=datetime.now(UTC).isoformat(timespec="seconds"),
        seconds_install=round(time.monotonic() - started, 3),
        marks=marks,
    )
    write_atomically(prefix / MARKER, json.dumps(asdict(record), indent=1, sort_keys=True))


def installed_versions(packages: Path) -> dict[str, str]:
    """Return canonical name to version of the distributions in a ``site-packages`` folder.

    Both are read from their dist-info.
    """
    found = importlib.metadata.distributions(path=[str(packages)])
    return dict(sorted((canonicalize_name(item.metadata["Name"]), item.version) for item in found))


def _assert_locked(lock: Lock, versions: dict[str, str]) -> None:
    wrong = {
        name: (wanted, versions.get(name)) for name, wanted in lock.versions.items() if versions.get(name) != wanted
    }
    if wrong:
        listed = ", ".join(f"{name} {wanted} (found: {found})" for name, (wanted, found) in wrong.items())
        raise EnvironmentFailedError(
            f"uv reported success, but the environment does not hold what the lock says: {listed}.",
            remedy="Empty uv's cache (`uv cache clean`) and try again; its entries may be damaged.",
        )


def remove(prefix: Path) -> None:
    """Remove an environment, its marker first. So it counts no longer, wherever the removal may end.

    Raises:
        EnvironmentFailedError: it cannot be removed.
    """
    try:
        (prefix / MARKER).unlink(missing_ok=True)
        if prefix.exists():
            shutil.rmtree(prefix)
    except OSError as error:
        raise EnvironmentFailedError(
            f"The environment {prefix.name} cannot be removed: {error}.",
            remedy="Check the owner of the cache folder (`harness env list` shows where it is).",
        ) from error
