"""Locks: the exact versions and hashes that a list of requirements comes to on one interpreter and one set of indexes.

A lock holds names, versions and hashes, and nothing of the machine that made it: no header, no annotation, no index
address, no path. So its SHA-256 is the same wherever the same packages are found, and can be recorded in a result.
"""

from __future__ import annotations

import hashlib
import json
import re
from collections.abc import Collection, Iterable, Sequence
from dataclasses import dataclass
from datetime import date
from pathlib import Path

from packaging.utils import canonicalize_name

from harness.contract.cell_fields import Device
from harness.envs.uv_command import UvRunner

SCHEMA = 1
"""Part of every key; raised when locks are made differently."""


_BUILT = re.compile(r"^[A-Za-z0-9][A-Za-z0-9._-]*(?:\[[^\]]*\])? @ \S+.*\n(?:[ \t]+.*\n?)*", re.MULTILINE)
"""A package that no index has, with its hashes on the lines below it, if any."""

_PIN = re.compile(r"^(?P<name>[A-Za-z0-9][A-Za-z0-9._-]*)(?:\[[^\]]*\])?===?(?P<version>[^\s;\\]+)")


@dataclass(frozen=True, kw_only=True)
class Lock:
    """A compiled lock.

    Attributes:
        text: as ``uv pip sync --require-hashes`` takes it.
        torch_backend: what ``uv --torch-backend`` was given, and has to be given again when installing; mostly None.
        reused: whether it came from the cache.
    """

    text: str
    torch_backend: str | None
    reused: bool

    @property
    def sha256(self) -> str:
        """Hex SHA-256 of the text."""
        return hashlib.sha256(self.text.encode()).hexdigest()

    @property
    def versions(self) -> dict[str, str]:
        """Canonical package name to locked version."""
        return locked_versions(self.text)


def lock_key(
    requirements: Iterable[str],
    *,
    interpreter_tag: str,
    uv_version: str,
    indexes_digest: str,
    device: Device,
    marks: Sequence[str] = (),
) -> str:
    """Return the hex key under which a lock is cached: everything that can change what is resolved.

    ``marks`` are what requirements do not say: what a package is built from, the day that is asked about.
    """
    parts = [SCHEMA, sorted(set(requirements)), interpreter_tag, uv_version, indexes_digest, device, *marks]
    return hashlib.sha256(json.dumps(parts).encode()).hexdigest()


def locked_versions(text: str) -> dict[str, str]:
    """Return canonical name to version for each pin in a lock or in the output of ``uv pip compile``."""
    pins = (_PIN.match(line) for line in text.splitlines())
    return {canonicalize_name(pin["name"]): pin["version"] for pin in pins if pin}


def without_sources(text: str) -> str:
    """Return a lock without the packages that no index has: they have no hash, or an address of this machine."""
    return _BUILT.sub("", text)


def compile_requirements(
    uv: UvRunner,
    requirements: Sequence[str],
    python: Path,
    *,
    dependencies: bool = True,
    torch_backend: str | None = None,
    lowest: bool = False,
    before: date | None = None,
    pre: Collection[str] = (),
) -> str:
    """Resolve requirements with ``uv pip compile``; with ``dependencies`` the result is a hashed lock.

    Nothing that was uploaded after the day ``before`` is taken. Pre-releases count for the packages in
    ``pre``, and where one is pinned.

    Raises:
        Unresolvable: they contradict each other, or name what no index has.
        EnvironmentFailedError: an index is out of reach, the disk is full, …
    """
    options = ["--no-header", "--no-annotate", "--python", str(python)]
    options += ["--generate-hashes"] if dependencies else ["--no-deps"]
    if torch_backend is not None:
        options += ["--torch-backend", torch_backend]
    if lowest:
        options += ["--resolution", "lowest"]
    if before is not None:
        options += ["--exclude-newer", before.isoformat()]
    options += [word for package in sorted(pre) for word in ("--prerelease-package", f"{package}=allow")]
    text = "\n".join(sorted(requirements)) + "\n"
    return uv(["pip", "compile", "-", *options], stdin=text)
